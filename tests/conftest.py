"""Give the tests one thread: their tensors are small, and one thread is faster and steady on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import experiments.light  # noqa: F401 - timm without W&B, which would be a third of the start of each process
