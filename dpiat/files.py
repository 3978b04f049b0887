"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file to write to, in the same folder and of the same name, which takes the place of `file` when it is whole."""
    if not file.parent.is_dir():
        raise FileNotFoundError(f"no folder {file.parent} for {file.name}")
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        written = Path(folder) / file.name
        yield written
        os.replace(written, file)
