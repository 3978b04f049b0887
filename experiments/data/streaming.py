"""Data sets that do not fit into memory. Worker processes decode and crop the images anew in each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiments.data.augmentation import crop_area, normalized
from experiments.data.layouts import ImageFiles
from experiments.settings import UserError, first_line

CPU = torch.device("cpu")
WHOLE = slice(None)
Draws = Iterator[tuple[Tensor, ...]]  # the tensors that a batch is made of, on the device


@dataclass(eq=False)
class StreamedSplit:
    """A split as image files. A batch depends on the generator's state alone, and not on the number of workers."""

    # How: before an epoch begins, the generator gives the order of the images and a seed for each image. A worker crops
    # an image by the image's own seed. Which worker crops it, and when, does not matter then, and after an epoch that
    # was left early the generator is where it is after a whole epoch.

    files: ImageFiles
    labels: Tensor  # (n,) int64, on the CPU
    workers: int  # processes; 0 decodes in the training process
    device: torch.device = CPU
    loaders: dict[tuple[bool, int], DataLoader] = field(default_factory=dict)

    def to(self, device: torch.device) -> StreamedSplit:
        return replace(self, device=device, loaders={})

    def subset(self, keep: Tensor) -> StreamedSplit:
        return replace(self, files=self.files.subset(keep.numpy()), labels=self.labels[keep], loaders={})

    def train_draws(self, batch: int, size: int, generator: torch.Generator, own: slice = WHOLE) -> Draws:
        """Draw an epoch: cropped images, (b, 3, size, size) uint8, and labels, (b,). See `loading.train_batches`."""
        order = torch.randperm(len(self.labels), generator=generator)
        seeds = torch.randint(2**63 - 1, (len(self.labels),), generator=generator)
        whole = len(order) // batch * batch
        order, seeds = (t[:whole].view(-1, batch)[:, own] for t in (order, seeds))  # (batches, own images)
        return self._draws(True, order.shape[1], size, order.flatten(), seeds.flatten())

    def test_draws(self, batch: int, size: int) -> Draws:
        """All images in order: their centres, (b, 3, size, size) uint8, and labels, (b,)."""
        order = torch.arange(len(self.labels))
        return self._draws(False, batch, size, order, seeds=order)

    def train_batch(self, size: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Make a batch from a draw, on its device: normalized images, and the labels."""
        return normalized(images), labels

    test_batch = train_batch

    def _draws(self, training: bool, batch: int, size: int, order: Tensor, seeds: Tensor) -> Draws:
        # A loader's processes live as long as the split: to start them takes seconds. So the items of an epoch are
        # handed to the same loader by filling its sampler, which is a list.
        if (training, size) not in self.loaders:
            self.loaders[training, size] = _loader(_Images(self.files, training, size), self.workers, self.device)
        loader = self.loaders[training, size]
        starts = range(0, len(order), batch)
        loader.sampler[:] = [(order[i : i + batch].numpy(), seeds[i : i + batch].numpy()) for i in starts]
        for (index, _), images in zip(list(loader.sampler), _results(loader), strict=True):
            yield sent(images, self.device), sent(self.labels[index], self.device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor from the CPU to a device, without a wait for the work that the device still has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _loader(images: _Images, workers: int, device: torch.device) -> DataLoader:
    """A loader that calls `images` with the items of its sampler. Fill the sampler, a list, before each epoch."""
    return DataLoader(
        images,
        batch_size=None,  # an item is a batch
        sampler=[],
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the default would draw from the global generator, which is dropout's
    )


def _results(loader: DataLoader) -> Iterator[Tensor]:
    try:
        for result in loader:
            if isinstance(result, UserError):
                # A new error: `result` itself would hold this frame in its traceback, and the frame holds `result`.
                # The circle would keep the loader's processes alive.
                raise UserError(str(result))
            yield result
    except RuntimeError as error:
        if not first_line(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"a process that decodes images died ({first_line(error)}): lower dataset.workers, or give it more "
            "memory, /dev/shm included"
        ) from error


class _Images(Dataset):
    """Makes batches of images, (b, 3, size, size) uint8, from indices and seeds; or returns an image's error."""

    def __init__(self, files: ImageFiles, training: bool, size: int):
        crop = v2.RandomResizedCrop(size, scale=crop_area(size)), v2.RandomHorizontalFlip()
        centre = v2.Resize(size), v2.CenterCrop(size)
        self.files, self.transform = files, v2.Compose([*(crop if training else centre), v2.PILToTensor()])

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray]) -> Tensor | UserError:
        try:
            return torch.stack([self._image(index, seed) for index, seed in zip(*key, strict=True)])
        except UserError as error:  # raised in a worker, the error would arrive with a traceback in its message
            return error

    def _image(self, index: int, seed: int) -> Tensor:
        image = self.files.image(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return self.transform(image)
