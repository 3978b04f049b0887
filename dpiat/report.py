"""What a transfer does, tensor by tensor: plain data that prints as a table."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pandas import DataFrame

WARNING = "warning: "  # begins the note of what is likely to be wrong
COPIED, CROPPED, PARTLY, LEFT, ZERO = "copied", "cropped", "partly filled", "left", "zero"
ACTIONS = (COPIED, CROPPED, PARTLY, ZERO, LEFT)
NOTHING = "–"  # in the place of a part that receives nothing


class Entry(NamedTuple):
    """What one target tensor receives.

    Attributes:
        target: The name of the tensor in the target's state dict.
        shape: The shape of the tensor; (0,) under the second name of a tensor that has several, so that elements count
            once.
        action: "copied" (whole, from an equal shape), "cropped" (filled whole, from another shape), "partly filled"
            (the other elements are zero or keep the target's values), "zero" (all of it, so that a part of the network
            does nothing at first) or "left" (nothing).
        filled: How many of its elements the source fills.
        source: The name of the source's tensor, or of several, joined by " + ".
        source_shape: The shape of the source's tensor.
        note: Why the tensor is left or zero, or that its values get another dtype. Begins with "warning: " if something
            is likely to be wrong.
        rule: What takes the operator's place, such as "input channels" or "classes".
        shared: The name under which a tensor with several names counts.
        parts: Of a tensor in which several layers are stacked, what each layer receives ("attn.qkv.weight[query]").
        zeros: How many elements are zero: inputs, of outputs that are filled, to which nothing comes.
    """

    target: str
    shape: tuple[int, ...]
    action: str
    filled: int = 0
    source: str = ""
    source_shape: tuple[int, ...] = ()
    note: str = ""
    rule: str = ""
    shared: str = ""
    parts: tuple[str, ...] = ()
    zeros: int = 0

    @property
    def elements(self) -> int:
        """The number of elements of the target tensor."""
        return prod(self.shape)

    @property
    def share(self) -> float:
        """The part of the target tensor that the source fills, in [0, 1]."""
        return self.filled / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Report:
    """One entry for each tensor of the target: parameters and saved buffers. `print()` shows it as a table.

    Attributes:
        entries: In the order of the target's state dict.
        notes: What is to be known of the whole.

    Examples:
        >>> print(transfer(source, target).summary())
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @property
    def elements(self) -> dict[str, int]:
        """Elements of the target by what happens to them; they add up to all of its elements."""
        totals = dict.fromkeys(ACTIONS, 0)
        for entry in self.entries:
            totals[entry.action] += entry.filled
            totals[ZERO] += entry.zeros
            totals[LEFT] += entry.elements - entry.filled - entry.zeros
        return totals

    @property
    def share(self) -> float:
        """The part of all target elements that the source fills, in [0, 1]."""
        total = sum(entry.elements for entry in self.entries)
        return sum(entry.filled for entry in self.entries) / total if total else 0.0

    @property
    def warnings(self) -> list[str]:
        """What is likely to be wrong, tensor by tensor."""
        return [
            f"{entry.target}: {entry.note.removeprefix(WARNING)}" for entry in self.entries if WARNING in entry.note
        ]

    def summary(self) -> str:
        """The report in one line: the share that is filled, the elements of each action, and the first warning."""
        total = sum(self.elements.values())
        parts = ", ".join(f"{count:,} {action}" for action, count in self.elements.items() if count)
        text = f"{percent(self.share, 1)} of the target's {total:,} elements filled: {parts or 'none'}"
        if warnings := self.warnings:
            more = f" and {len(warnings) - 1} more" if len(warnings) > 1 else ""
            text += f"; warning: {warnings[0]}{more}"
        return "; ".join([text, *self.notes])

    def to_dataframe(self) -> DataFrame:
        """A row for each target tensor. Needs pandas.

        Returns:
            A `pandas.DataFrame` with the fields of `Entry`, `elements` and `share`.
        """
        from pandas import DataFrame

        return DataFrame([{**e._asdict(), "elements": e.elements, "share": e.share} for e in self.entries])

    def __str__(self) -> str:
        head = ("target tensor", "shape", "action", "share", "from")
        rows = [
            (e.target, times(e.shape), e.action, percent(e.share), f"{e.source} {times(e.source_shape)}{_note(e)}")
            if e.source
            else (e.target, times(e.shape), e.action, "0%", _note(e).strip())
            for e in self.entries
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        table = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
        return "\n".join([*("  ".join(row).rstrip() for row in table), self.summary()])


def percent(share: float, digits: int = 0) -> str:
    """A part in percent; what is not all is never rounded to 100%, and what is not nothing never to 0%."""
    least = 0.01 / 10**digits
    if 0 < share < least:
        return f"<{least:.{digits}%}"
    return f"{min(share, 1 - least) if share < 1 else share:.{digits}%}"


def times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _note(entry: Entry) -> str:
    shared = f"the same tensor as {entry.shared}" if entry.shared else ""
    notes = ", ".join(filter(None, (entry.rule, entry.note, shared)))
    return f" ({notes})" if notes else ""
