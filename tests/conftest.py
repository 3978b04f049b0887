"""Give the tests one thread, and timm without W&B.

Tensors of tests are small, and one thread is faster and steady on a busy machine. W&B would be a third of each start.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import experiments.light  # noqa: F401
