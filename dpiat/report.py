"""What a transfer does, tensor by tensor, and what survives it, stage by stage: plain data that prints as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isnan, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

WARNING = "warning: "  # begins the note of what is likely to be wrong
COPIED, CROPPED, PARTLY, LEFT = "copied", "cropped", "partly filled", "left"
ZERO, IDENTITY = "zero", "identity"  # of what does nothing at first, whatever the source is
ACTIONS = (COPIED, CROPPED, PARTLY, ZERO, IDENTITY, LEFT)
# What a summary says of elements: of those that the source fills, and of the others.
FILLED = {COPIED: "copied", CROPPED: "cropped", PARTLY: "in partly filled tensors"}
OTHERS = {ZERO: "set to zero", IDENTITY: "set to the identity", LEFT: "keep their own values"}
NOTHING = "–"  # in the place of a part that receives nothing


class Entry(NamedTuple):
    """What one target tensor receives.

    Attributes:
        target: The name of the tensor in the target's state dict.
        shape: The shape of the tensor; (0,) under the second name of a tensor that has several, so that elements count
            once.
        action: "copied" (whole, from an equal shape), "cropped" (filled whole, from another shape), "partly filled"
            (the other elements are zero or keep the target's values), "zero" (all of it, so that a part of the network
            does nothing at first), "identity" (of a new layer, which gives what it takes at first) or "left" (nothing).
        filled: How many of its elements the source fills.
        source: The name of the source's tensor, or of several, joined by " + ".
        source_shape: The shape of the source's tensor.
        note: Why the tensor is left or zero, or that its values get another dtype. Begins with "warning: " if something
            is likely to be wrong.
        rule: What takes the operator's place, such as "input channels" or "classes".
        shared: The name under which a tensor with several names counts.
        parts: Of a tensor in which several layers are stacked, what each layer receives ("attn.qkv.weight[query]").
        zeros: How many elements are set to zero: inputs, of outputs that are filled, to which nothing comes; of an
            identity, all elements of the outputs that pass, with the ones (1.0) on the diagonal.
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
    networks: Any = field(default=None, repr=False, compare=False)  # what `check` reaches them by

    def check(self, images: Any, labels: Any = None, source: Any = None, target: Any = None) -> Check:
        """What survived the transfer: compare both networks on some images, before training.

        Takes one forward pass of each network, without gradients, on its own device. Batch norms take the statistics of
        the images, as they do in training, and keep their own; all other modules are in eval mode. Neither network is
        changed.

        Look at the last stages: in the first ones a random network agrees too. How much a random network agrees depends
        on the networks and the images. So check a copy of the target from before the transfer beside it, as `target`. A
        good transfer agrees clearly more.

        Args:
            images: What both networks take: a batch, or a mapping of their arguments. At least 4 images; of fewer than
                about 100 the numbers are rough. Labels are not needed.
            labels: A class for each image. Then a ridge regression reads the classes from what comes before the
                classifier: learned from one half of the images, measured on the other.
            source: The network that gave. Needed if it cannot compute (a state dict), or is no longer in memory: a
                report keeps no network, so that a source which was given as a name or a file is gone.
            target: The network that received, likewise; or another network of the same layers, to compare with.

        Returns:
            A `Check`: for each stage, the agreement and the share of the target's own values. It prints as a table.

        Raises:
            ValueError: If a network is gone, is a state dict, is on the meta device or does not take the images; for
                fewer than 4 images or other numbers of labels.

        Examples:
            >>> fresh = copy.deepcopy(target)
            >>> report = transfer(source, target)
            >>> print(report.check(images))
            >>> print(report.check(images, target=fresh))  # the agreement of a network that received nothing
        """
        if self.networks is None:
            raise ValueError("the report is of a plan that is not applied: there is nothing to check")
        return self.networks.check(self, images, labels, source=source, target=target)

    @property
    def elements(self) -> dict[str, int]:
        """Elements of the target by what happens to them; they add up to all of its elements."""
        totals = dict.fromkeys(ACTIONS, 0)
        for entry in self.entries:
            totals[entry.action] += entry.filled
            totals[IDENTITY if entry.action == IDENTITY else ZERO] += entry.zeros
            totals[LEFT] += entry.elements - entry.filled - entry.zeros
        return totals

    @property
    def share(self) -> float:
        """The part of all target elements that the source fills, in [0, 1]."""
        total = sum(entry.elements for entry in self.entries)
        return sum(entry.filled for entry in self.entries) / total if total else 0.0

    @property
    def warnings(self) -> list[str]:
        """What is probably wrong, tensor by tensor."""
        return [
            f"{entry.target}: {entry.note.removeprefix(WARNING)}" for entry in self.entries if WARNING in entry.note
        ]

    def summary(self) -> str:
        """The report in one line: what the source fills, what happens to all other elements, and the first warning."""
        counts = self.elements
        filled, others = (
            [f"{counts[action]:,} {said}" for action, said in words.items() if counts[action]]
            for words in (FILLED, OTHERS)
        )
        text = f"{percent(self.share, 1)} of the target's {sum(counts.values()):,} elements filled"
        text = "; ".join([f"{text}: {', '.join(filled)}" if filled else text, *others])
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
        return "\n".join([*_aligned(head, *rows), self.summary()])


class StageCheck(NamedTuple):
    """What survived in one stage of the target.

    Attributes:
        stage: The names of its first and its last block; or "stem", "before the classifier", "classifier".
        source: The stage of the source that it is compared with, "" if there is none.
        agreement: Linear CKA of both stages' outputs, means over places: 1 for the same but for a rotation and a scale,
            about 0 for what has nothing in common, NaN where there is nothing to compare.
        own: The share of its parameters' elements that keep the target's own values, in [0, 1].
        elements: The number of its parameters' elements.
    """

    stage: str
    source: str
    agreement: float
    own: float
    elements: int


@dataclass(frozen=True)
class Check:
    """What survived a transfer, stage by stage. `print()` shows it as a table.

    Attributes:
        stages: In the order of the target.
        images: The number of images.
        probes: With labels, the accuracies of a ridge regression on what comes before the classifier, of the source and
            of the target: on one half of the images, learned from the other half.
        chance: With labels, the share of the images in the largest class.

    Examples:
        >>> print(transfer(source, target).check(images, labels))
    """

    stages: tuple[StageCheck, ...]
    images: int
    probes: tuple[float, float] | None = None
    chance: float | None = None

    @property
    def own(self) -> float:
        """The share of the elements of all parameters that keep the target's own values, in [0, 1]."""
        total = sum(stage.elements for stage in self.stages)
        return sum(stage.own * stage.elements for stage in self.stages) / total if total else 0.0

    def summary(self) -> str:
        """The check in one line."""
        scale = "agreement: 1 is the same, 0 is nothing in common"
        own = f"{percent(self.own, 1)} of the target's parameters keep their own values"
        text = f"{self.images} images; {scale}; {own}"
        if self.probes is None:
            return text
        source, target = self.probes
        return f"{text}; a probe has {source:.2f} on the source, {target:.2f} on the target, chance {self.chance:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """The check as plain data, such as for JSON.

        Returns:
            The fields; "stages" is a list with a mapping for each stage.
        """
        return {**asdict(self), "stages": [stage._asdict() for stage in self.stages]}

    def to_dataframe(self) -> DataFrame:
        """A row for each stage. Needs pandas.

        Returns:
            A `pandas.DataFrame` with the fields of `StageCheck`.
        """
        from pandas import DataFrame

        return DataFrame(self.stages, columns=StageCheck._fields)

    def plot(self, file: str | Path | None = None, *, axes: Axes | None = None) -> Axes:
        """Draw two bars for each stage: its agreement with the source, and the share of own values. Needs matplotlib.

        Args:
            file: Where the picture is saved: .png, .svg or .pdf.
            axes: Where it is drawn, if not in a figure of its own.

        Returns:
            The axes.

        Raises:
            ValueError: For another suffix.
            ModuleNotFoundError: Without matplotlib.

        Examples:
            >>> report.check(images).plot("check.png")
        """
        from dpiat.plotting import plot_bars

        values = {"agreement with the source": [s.agreement for s in self.stages]}
        values["share of the target's own values"] = [s.own for s in self.stages]
        return plot_bars([s.stage for s in self.stages], values, self.summary().replace("; ", "\n"), file, axes=axes)

    def __str__(self) -> str:
        head = ("stage", "compared with", "agreement", "own values")
        rows = [
            (s.stage, s.source or "–", "–" if isnan(s.agreement) else f"{s.agreement:.2f}", percent(s.own))
            for s in self.stages
        ]
        return "\n".join([*_aligned(head, *rows), self.summary()])


def _aligned(*rows: Sequence[str]) -> list[str]:
    """The rows of a table as lines, cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def percent(share: float, digits: int = 0) -> str:
    """A share in percent. Only all is 100%, and only nothing is 0%, however the rest is rounded."""
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
