"""Data sets that do not fit into memory: images decoded and cropped by worker processes, anew in each epoch."""

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
Draws = Iterator[tuple[Tensor, ...]]  # what batches are made of, on the device


@dataclass(eq=False)
class StreamedSplit:
    """A split as image files. A batch depends on the generator's state alone, however many workers there are."""

    files: ImageFiles
    labels: Tensor  # (n,) int64, on the CPU
    workers: int  # processes; 0: the training process itself
    device: torch.device = CPU
    loaders: dict[tuple[bool, int], DataLoader] = field(default_factory=dict)

    def to(self, device: torch.device) -> StreamedSplit:
        return replace(self, device=device, loaders={})

    def subset(self, keep: Tensor) -> StreamedSplit:
        return replace(self, files=self.files.subset(keep.numpy()), labels=self.labels[keep], loaders={})

    def train_draws(self, batch: int, size: int, generator: torch.Generator, part: slice = WHOLE) -> Draws:
        """Cropped images, uint8, and their labels; all that an epoch takes from `generator` is taken as it starts."""
        order = torch.randperm(len(self.labels), generator=generator)
        seeds = torch.randint(2**63 - 1, (len(self.labels),), generator=generator)
        whole = len(order) // batch * batch
        order, seeds = (t[:whole].view(-1, batch)[:, part] for t in (order, seeds))  # (batches, images of the part)
        return self._draws(True, order.shape[1], size, order.flatten(), seeds.flatten())

    def test_draws(self, batch: int, size: int) -> Draws:
        order = torch.arange(len(self.labels))
        return self._draws(False, batch, size, order, seeds=order)

    def train_batch(self, size: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return normalized(images), labels

    test_batch = train_batch

    def _draws(self, training: bool, batch: int, size: int, order: Tensor, seeds: Tensor) -> Draws:
        if (training, size) not in self.loaders:  # its processes live as long as the split
            self.loaders[training, size] = _loader(_Images(self.files, training, size), self.workers, self.device)
        loader = self.loaders[training, size]
        starts = range(0, len(order), batch)
        loader.sampler[:] = [(order[i : i + batch].numpy(), seeds[i : i + batch].numpy()) for i in starts]
        for (index, _), images in zip(list(loader.sampler), _results(loader), strict=True):
            yield sent(images, self.device), sent(self.labels[index], self.device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on a device, without a wait until the device has done what it has to do before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _loader(images: _Images, workers: int, device: torch.device) -> DataLoader:
    """Calls `images` with the items of its sampler, a list to be filled for each epoch."""
    return DataLoader(
        images,
        batch_size=None,  # an item is a batch
        sampler=[],
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it draws from the generator of dropout
    )


def _results(loader: DataLoader) -> Iterator[Tensor]:
    try:
        for result in loader:
            if isinstance(result, UserError):
                raise UserError(str(result))  # another, so that no cycle with this frame keeps the processes alive
            yield result
    except RuntimeError as error:
        if not first_line(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"a process that decodes images died ({first_line(error)}): lower dataset.workers, or give it more "
            "memory, /dev/shm included"
        ) from error


class _Images(Dataset):
    """Batches of images (b, 3, size, size) uint8 by indices and seeds, or the error that an image of them gave."""

    def __init__(self, files: ImageFiles, training: bool, size: int):
        crop = v2.RandomResizedCrop(size, scale=crop_area(size)), v2.RandomHorizontalFlip()
        centre = v2.Resize(size), v2.CenterCrop(size)
        self.files, self.transform = files, v2.Compose([*(crop if training else centre), v2.PILToTensor()])

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray]) -> Tensor | UserError:
        try:
            return torch.stack([self._image(index, seed) for index, seed in zip(*key, strict=True)])
        except UserError as error:  # raised here, it would arrive with a traceback in its message
            return error

    def _image(self, index: int, seed: int) -> Tensor:
        image = self.files.image(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return self.transform(image)
