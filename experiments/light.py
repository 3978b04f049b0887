"""timm, imported without W&B.

timm imports W&B for a log of its own, which nothing here writes. This takes a third of the start of every command.
"""

import sys

_loaded = sys.modules.get("wandb")
sys.modules["wandb"] = _loaded  # None says to an import that there is no such module
import timm  # noqa: E402

if _loaded is None:
    del sys.modules["wandb"]

__all__ = ["timm"]
