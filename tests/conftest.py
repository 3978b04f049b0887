"""One thread for the small tensors of the tests: faster, and steady on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
