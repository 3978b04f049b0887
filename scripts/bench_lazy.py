"""Measure the memory and the time of a transfer from a checkpoint that is larger than its target.

    python scripts/bench_lazy.py [--gigabytes 4] [--folder /tmp]

Writes a Hugging Face folder of that size (a Llama in bfloat16, in shards of 1 GB, random values), reads it once in
pieces of 16 MB, transfers it to a Llama of a seventh of its parameters, and deletes it. Reading and transfer run in
processes of their own, and the files leave the page cache before each (posix_fadvise), so that both read the disk.

Prints two peaks of memory, sampled every 5 ms, above what the process had before the transfer: anonymous memory, which
the process itself needs (RssAnon of /proc/self/status), and mapped files (RssFile), pages of the checkpoint that the
system takes back when it needs the memory. Prints also the size of the target, and the seconds of the transfer over the
seconds of reading. Needs transformers and Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from dpiat import transfer

PIECE = 16 << 20  # bytes
SHARD = 10**9  # bytes
LAYERS = 16
HEADS = 16


def config(width: int, layers: int) -> transformers.LlamaConfig:
    """The configuration of a Llama with so many channels and layers."""
    return transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def outline(width: int, layers: int) -> torch.nn.Module:
    """A Llama in bfloat16 on the meta device."""
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config(width, layers)).to(torch.bfloat16)


def bytes_of(network: torch.nn.Module) -> int:
    """The size of a network's state dict."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def write(folder: Path, size: int) -> int:
    """Write the checkpoint, shard by shard, and return the width of its network."""
    width = next(w for w in range(256, 10**5, 256) if bytes_of(outline(w, LAYERS)) >= size)
    config(width, LAYERS).save_pretrained(folder)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in outline(width, LAYERS).state_dict().items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > SHARD and shards[-1]:
            shards.append({})
        shards[-1][name] = tensor
    index = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(shard, file)
        save_file({name: torch.rand(t.shape, dtype=t.dtype) for name, t in shard.items()}, folder / file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return width


def forget(folder: Path) -> None:
    """Take the files out of the page cache."""
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(folder: Path) -> float:
    """The seconds that it takes to read the files into one buffer."""
    forget(folder)
    buffer, begin = bytearray(PIECE), time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - begin


def memory() -> dict[str, int]:
    """The memory that this process has now, in bytes, by kind."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0].strip(":"): int(row[1]) << 10 for row in rows if row[0] in ("RssAnon:", "RssFile:")}


class Peak(threading.Thread):
    """A thread that notes the highest memory of each kind while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.found, self.done = memory(), threading.Event()

    def run(self):
        while not self.done.wait(0.005):
            self.found = {key: max(value, self.found[key]) for key, value in memory().items()}


def measure(folder: Path, width: int) -> dict[str, float]:
    """Transfer once. The target is `width` wide and has its memory before the transfer begins."""
    target = outline(width, LAYERS).to_empty(device="cpu")
    for tensor in target.state_dict().values():
        tensor.zero_()
    before, peak = memory(), Peak()
    forget(folder)
    peak.start()
    begin = time.perf_counter()
    report = transfer(f"{folder}/", target)
    seconds = time.perf_counter() - begin
    peak.done.set()
    peak.join()
    grown = {key: value - before[key] for key, value in peak.found.items()}
    return {"seconds": seconds, "target": bytes_of(target), "share": report.share, **grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--folder", help="where the checkpoint is written; the system's folder for such files")
    parser.add_argument("--measure", nargs=2, metavar=("CHECKPOINT", "WIDTH"), help="the second process's part")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), int(arguments.measure[1]))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        width = write(Path(folder), int(arguments.gigabytes * 10**9))
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        narrow = max(w for w in range(128, width, 128) if bytes_of(outline(w, LAYERS)) <= max(size / 7, 2e7))
        largest = max(tensor.nbytes for tensor in outline(width, LAYERS).state_dict().values())
        reading = read_once(Path(folder))
        words = [sys.executable, __file__, "--measure", folder, str(narrow)]
        found = json.loads(subprocess.check_output(words, text=True).splitlines()[-1])
    gb = 1e9
    print(f"checkpoint {size / gb:.2f} GB, largest tensor {largest / gb:.2f} GB, target {found['target'] / gb:.2f} GB")
    print(f"read once {reading:.1f} s; transfer {found['seconds']:.1f} s: {found['seconds'] / reading:.2f} times")
    print(
        f"beside the target: {found['RssAnon'] / gb:.2f} GB anonymous, {found['RssFile'] / gb:.2f} GB of mapped files"
    )
    print(f"{found['share']:.1%} of the target filled")


if __name__ == "__main__":
    main()
