"""A plan as one page of HTML: which block comes from which, what share of it is filled, and what is likely wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from dpiat.architecture import Architecture, Block
from dpiat.report import COPIED, CROPPED, IDENTITY, LEFT, NOTHING, PARTLY, WARNING, ZERO, Entry, Report, percent, times

# The words of a report, and the class of the style sheet that colours each of them.
CLASSES = {COPIED: "copied", CROPPED: "cropped", PARTLY: "partly", ZERO: "zero", IDENTITY: "identity", LEFT: "left"}
OUTSIDE = "outside of the blocks"
ROW, LEFT_EDGE, RIGHT_EDGE, BAR = 22, 300, 640, 60  # lengths of the drawing, in its own units

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1b1b1b; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.4em; margin-bottom: 0 } h2 { font-size: 1.1em; margin: 1.6em 0 .4em }
.copied { background: #0072b2; fill: #0072b2 } .cropped { background: #56b4e9; fill: #56b4e9 }
.partly { background: #e69f00; fill: #e69f00 } .left { background: #d0d0d0; fill: #d0d0d0 }
.zero { background: #707070; fill: #707070 }
.identity { background: #9a86b8; fill: #9a86b8 }
.whole { display: flex; height: 18px; border-radius: 3px; overflow: hidden; margin: .6em 0 .3em }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 1em }
.warnings { border-left: 5px solid #c0392b; background: #fdecea; padding: .5em 1em }
.warned, tr.warned td { color: #a61b0f; background: #fdecea } text.warned { fill: #a61b0f; background: none }
.drawing, details { overflow-x: auto } svg { width: 100%; min-width: 640px; font-size: 12px }
path { fill: #0072b2 } path.warned { fill: #c0392b } path:hover { opacity: 1 }
.quiet { fill: #8a8a8a; color: #8a8a8a }
details { border-top: 1px solid #ddd; padding: .25em 0 } summary { cursor: pointer }
table { border-collapse: collapse; margin: .3em 0 .6em 1.1em; font-size: 13px } td, th { padding: .1em .7em .1em 0 }
th { text-align: left; font-weight: 600 } td { vertical-align: top; overflow-wrap: anywhere }
.bar { display: inline-block; width: 60px; height: .7em; background: #d0d0d0; margin-right: .5em }
.bar i { display: block; height: 100% }
#few:checked ~ main tr.filled, #few:checked ~ main details.filled { display: none }
"""


class Part(NamedTuple):
    """A block of the target: its name, its tensors, and how many of its elements come from each block of the source."""

    name: str
    entries: list[Entry]
    given: Counter[str]

    @property
    def report(self) -> Report:
        return Report(tuple(self.entries))

    @property
    def warned(self) -> bool:
        return bool(self.report.warnings)


def page(report: Report, source: Architecture, target: Architecture, names: tuple[str, str] | None = None) -> str:
    """The report of a transfer between two networks as an HTML page that needs no other file.

    Args:
        report: What each tensor of the target receives.
        source: The source's blocks, by which its tensors are grouped.
        target: The target's blocks, likewise.
        names: The names of both networks, in place of their classes'.

    Returns:
        The text of the page.
    """
    names = names or (source.name, target.name)
    parts = _parts(report, source, target)
    title = escape(f"{names[0]} → {names[1]}")
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>",
            f"<p>{escape(report.summary())}</p>",
            *_whole(report),
            *_warnings(report),
            "<h2>Where each block comes from</h2>",
            f"<p>The source, {escape(names[0])}, is on the left, and the target, {escape(names[1])}, on the right. "
            "A dark band fills much of the target's block. The bar says what share of the block is filled.</p>",
            *_drawing(parts, [_label(block) for block in source.blocks]),
            "<h2>Tensor by tensor</h2>",
            '<input type="checkbox" id="few"> <label for="few">only what is not filled whole, or has a warning</label>',
            "<main>",
            *(line for part in parts for line in _details(part)),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _parts(report: Report, source: Architecture, target: Architecture) -> list[Part]:
    """The blocks of the target in their order, and what stands outside of them."""
    givers, takers = _owners(source), _owners(target)
    parts = {label: Part(label, [], Counter()) for label in (*map(_label, target.blocks), OUTSIDE)}
    for entry in report.entries:
        part = parts[_owner(entry.target, takers)]
        part.entries.append(entry)
        pieces = [piece for piece in entry.parts or (entry.source,) if piece not in ("", NOTHING)]
        for piece in pieces:  # the report counts the elements of the whole tensor alone, so its parts count alike
            part.given[_owner(piece, givers)] += entry.filled / len(pieces)
    return [part for part in parts.values() if part.entries]


def _owners(network: Architecture) -> dict[str, str]:
    """The label of the block of each layer, by the layer's name. The parts of a stacked layer have one name."""
    return {layer.name.partition("[")[0]: _label(block) for block in network.blocks for layer in block.layers}


def _owner(tensor: str, owners: Mapping[str, str]) -> str:
    """The label of the block that a tensor, or a part of one, belongs to: its layer's name begins the tensor's."""
    name = tensor.partition("[")[0]
    while name not in owners and name:
        name = name.rpartition(".")[0]
    return owners.get(name, OUTSIDE)


def _label(block: Block) -> str:
    """The name of a block, or the first and the last layer of a block without a name."""
    if block.name and not block.run:
        return block.name
    ends = dict.fromkeys(layer.name.partition("[")[0] for layer in (block.layers[0], block.layers[-1]))
    return " … ".join(ends) or block.layers[0].kind


def _whole(report: Report) -> list[str]:
    """All elements of the target as one bar, with its key."""
    elements = {action: count for action, count in report.elements.items() if count}
    total = sum(elements.values())
    bar = "".join(
        f'<div class="{CLASSES[a]}" style="width: {count / total:.2%}"></div>' for a, count in elements.items()
    )
    key = "".join(
        f'<span class="key {CLASSES[a]}"></span>{a} {_percent(count / total)}' for a, count in elements.items()
    )
    return [f'<div class="whole">{bar}</div>', f"<div>{key}</div>"]


def _warnings(report: Report) -> list[str]:
    if not (warnings := report.warnings):
        return []
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return [f'<div class="warnings"><b>{len(warnings)} to look at</b><ul>{items}</ul></div>']


def _drawing(parts: Sequence[Part], sources: Sequence[str]) -> list[str]:
    """The blocks of both networks in two columns, with a band from each block to each block that it fills."""
    sources = [*sources, *([OUTSIDE] if any(part.given[OUTSIDE] for part in parts) else [])]
    height = ROW * max(len(sources), len(parts), 1)
    above = {label: height * i / len(sources) for i, label in enumerate(sources)}
    used = {label for part in parts for label in part.given}
    image = 'role="img" aria-label="which block comes from which"'
    lines = ['<div class="drawing">', f'<svg viewBox="0 0 1000 {height}" {image}>']
    for i, part in enumerate(parts):
        y = height * i / len(parts)
        elements = sum(entry.elements for entry in part.entries)
        for label, filled in part.given.items():
            share = filled / elements
            band = _band(above[label] + 2, y + 2, ROW - 4)
            about = escape(f"{label} → {part.name}: {percent(share)}")
            warned = ' class="warned"' if part.warned else ""
            lines.append(f'<path d="{band}" opacity="{0.12 + 0.5 * share:.2f}"{warned}><title>{about}</title></path>')
        lines += _right(part, y)
    for label, y in above.items():
        quiet = "" if label in used else ' class="quiet"'
        lines.append(f'<rect x="{LEFT_EDGE - 8}" y="{y + 2:.1f}" width="8" height="{ROW - 4}" fill="#4a4a4a"/>')
        text = f'<text x="{LEFT_EDGE - 14}" y="{y + 15:.1f}" text-anchor="end"{quiet}>{escape(label)}</text>'
        lines.append(text)
    return [*lines, "</svg>", "</div>"]


def _right(part: Part, y: float) -> list[str]:
    """A block of the target: a bar that is filled by the block's share, the name, and the share in percent."""
    share = part.report.share
    style = "warned" if part.warned else "" if share else "quiet"
    mark = "⚠ " if part.warned else ""
    text = escape(f"{mark}{part.name}  {percent(share)}")
    place, colour = f'<rect x="{RIGHT_EDGE}" y="{y + 2:.1f}" height="{ROW - 4}"', "copied" if share == 1 else "partly"
    return [
        f'{place} width="{BAR}" class="left"/>',
        f'{place} width="{BAR * share:.1f}" class="{colour}"/>',
        f'<text x="{RIGHT_EDGE + BAR + 6}" y="{y + 15:.1f}" class="{style}">{text}</text>',
    ]


def _band(above: float, below: float, height: float) -> str:
    """A band of one height from the left column to the right column, which leaves and arrives horizontally."""
    middle = (LEFT_EDGE + RIGHT_EDGE) / 2
    return (
        f"M{LEFT_EDGE} {above:.1f}C{middle:g} {above:.1f} {middle:g} {below:.1f} {RIGHT_EDGE} {below:.1f}v{height}"
        f"C{middle:g} {below + height:.1f} {middle:g} {above + height:.1f} {LEFT_EDGE} {above + height:.1f}z"
    )


def _details(part: Part) -> list[str]:
    """A block of the target as a line that opens to the table of its tensors."""
    whole = all(_filled(entry) for entry in part.entries)
    froms = ", ".join(label for label, _ in part.given.most_common()) or "nothing"
    mark = "⚠ " if part.warned else ""
    state = f'class="{"filled" if whole else "warned" if part.warned else ""}"{" open" if part.warned else ""}'
    share = _percent(part.report.share)
    line = f'<b>{mark}{escape(part.name)}</b> {share} <span class="quiet">from</span> {escape(froms)}'
    head = "<tr><th>tensor<th>shape<th>what happens<th>share<th>from</tr>"
    rows = [_row(entry) for entry in part.entries]
    return [f"<details {state}><summary>{line}</summary>", f"<table>{head}", *rows, "</table></details>"]


def _percent(share: float) -> str:
    return escape(percent(share))  # "<1%"


def _filled(entry: Entry) -> bool:
    """Is there nothing to look at? A tensor under its second name has no elements."""
    return WARNING not in entry.note and (entry.share == 1 or bool(entry.shared))


def _row(entry: Entry) -> str:
    style = CLASSES[entry.action]
    share = f'<span class="bar"><i class="{style}" style="width: {entry.share:.1%}"></i></span>{_percent(entry.share)}'
    shared = f"the same tensor as {entry.shared}" if entry.shared else ""
    zeros = f"{entry.zeros:,} zeros" if entry.zeros and entry.action not in (ZERO, IDENTITY) else ""
    notes = (entry.rule, entry.note, zeros, shared)
    source = f"{entry.source} {times(entry.source_shape)}" if entry.source else ""
    said = "; ".join(escape(text) for text in (source, *notes) if text)
    cells = (escape(entry.target), times(entry.shape), entry.action, "" if entry.shared else share, said)
    row = "filled" if _filled(entry) else "warned" if WARNING in entry.note else ""
    return f'<tr class="{row}">' + "".join(f"<td>{cell}" for cell in cells) + "</tr>"
