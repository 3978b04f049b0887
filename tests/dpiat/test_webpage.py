"""The page that shows a plan says what the report says."""

import re
from html import escape
from html.parser import HTMLParser

import pytest
from networks import small

from dpiat import Architecture, Block, Entry, Layer, Report, plan
from dpiat.__main__ import main
from dpiat.report import COPIED, CROPPED, LEFT, PARTLY, WARNING, ZERO
from dpiat.webpage import page


def network(name: str, *blocks: str) -> Architecture:
    """A network of blocks of one layer, "fc"."""
    return Architecture(name, tuple(Block(block, (Layer(f"{block}.fc", "Linear", (4, 4)),)) for block in blocks))


SOURCE, TARGET = network("Giver", "a", "b"), network("Taker", "x", "y", "z")
ENTRIES = (
    Entry("x.fc.weight", (4, 4), COPIED, 16, "a.fc.weight", (4, 4)),
    Entry("y.fc.weight", (4, 4), PARTLY, 4, "b.fc.weight", (2, 2)),
    Entry("y.fc.bias", (4,), CROPPED, 4, "b.fc.bias", (6,), f"{WARNING}filled from another role (key, not query)"),
    Entry("z.fc.weight", (4, 4), LEFT, note="no source layer matched"),
    Entry("scale", (4,), LEFT, note="a <b>bare</b> parameter"),
)


@pytest.fixture(scope="module")
def text() -> str:
    return page(Report(ENTRIES), SOURCE, TARGET)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the tables, without marks, by the first one; the class of the row is the last."""
    found = {}
    for style, row in re.findall(r'<tr class="(\w*)">(.*?)</tr>', text):
        cells = [re.sub(r"<[^>]*>", "", cell) for cell in row.split("<td>")[1:]]
        found[cells[0]] = [*cells[1:], style]
    return found


def test_a_row_for_each_tensor_says_its_share(text):
    found = rows(text)
    assert found["x.fc.weight"] == ["4×4", "copied", "100%", "a.fc.weight 4×4", "filled"]
    assert found["y.fc.weight"] == ["4×4", "partly filled", "25%", "b.fc.weight 2×2", ""]
    assert found["z.fc.weight"] == ["4×4", "left", "0%", "no source layer matched", ""]


def test_a_band_for_each_pair_of_blocks_says_its_share(text):
    assert re.findall(r"<title>(.*? → .*?: .*?)</title>", text) == ["a → x: 100%", "b → y: 40%"]
    names = re.findall(r'<text [^>]*class="(\w*)">(.*?)</text>', text)
    assert ("", "x  100%") in names and ("quiet", "z  0%") in names
    assert '<b>z</b> 0% <span class="quiet">from</span> nothing' in text


def test_a_warning_is_marked(text):
    assert rows(text)["y.fc.bias"][-1] == "warned"
    assert '<path class="warned"' in re.sub(r'd="[^"]*" opacity="[^"]*" ', "", text)
    assert ("warned", "⚠ y  40%") in re.findall(r'<text [^>]*class="(\w*)">(.*?)</text>', text)
    assert "1 to look at" in text and "y.fc.bias: filled from another role (key, not query)" in text
    assert "to look at" not in page(Report(ENTRIES[:2]), SOURCE, TARGET)


def test_what_no_block_has_is_shown(text):
    assert "<b>outside of the blocks</b> 0%" in text and "scale" in rows(text)


def test_names_are_escaped(text):
    assert "a &lt;b&gt;bare&lt;/b&gt; parameter" in text and "<b>bare" not in text
    odd = page(Report(ENTRIES), SOURCE, TARGET, ("<script>", "a & b"))
    assert "<script>" not in odd and "<h1>&lt;script&gt; → a &amp; b</h1>" in odd


def test_a_small_share_is_no_mark():
    text = page(Report((Entry("x.fc.weight", (400, 4), PARTLY, 1, "a.fc.weight", (1, 1)),)), SOURCE, TARGET)
    assert rows(text)["x.fc.weight"][2] == "&lt;1%" and "<1" not in text


def test_zeros_are_told_from_what_is_left():
    silent = Entry("z.fc.weight", (4, 4), ZERO, note="zero, so that a new block does nothing at first", zeros=16)
    part = Entry("y.fc.weight", (4, 4), PARTLY, 4, "b.fc.weight", (2, 2), zeros=8)
    text = page(Report((silent, part)), SOURCE, TARGET)
    assert rows(text)["z.fc.weight"] == ["4×4", "zero", "0%", "zero, so that a new block does nothing at first", ""]
    assert rows(text)["y.fc.weight"][3] == "b.fc.weight 2×2; 8 zeros" and "</span>zero 75%" in text


def test_parts_of_a_tensor_come_from_their_blocks():
    parts = ("a.fc.weight[query]", "b.fc.weight[key]", "–")
    entry = Entry("x.fc.weight", (12, 4), PARTLY, 32, " + ".join(parts), (12, 4), parts=parts)
    assert re.findall(r"<title>(. → .*?)</title>", page(Report((entry,)), SOURCE, TARGET)) == [
        "a → x: 33%",
        "b → x: 33%",
    ]


def test_a_tensor_with_two_names_counts_once():
    tied = Entry("z.fc.weight", (0,), LEFT, shared="x.fc.weight")
    found = rows(page(Report((ENTRIES[0], tied)), SOURCE, TARGET))
    assert found["z.fc.weight"] == ["0", "left", "", "the same tensor as x.fc.weight", "filled"]


class Marks(HTMLParser):
    """Fails at a mark that ends what is not open. Marks that need no end are left out."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "input", "td", "th"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_of_a_plan_stands_alone():
    planned = plan(small(10, 16), small(5, 24))
    text = planned.to_html(("narrow", "wide"))
    marks = Marks()
    marks.feed(text)
    assert marks.open == [] and marks.links == [] and "http" not in text
    assert rows(text).keys() == {entry.target for entry in planned.report.entries}
    assert "outside of the blocks" not in text and escape(planned.report.summary()) in text


def test_dpiat_report(tmp_path, capsys):
    file = tmp_path / "report.html"
    assert main(["report", "resnet10t", "resnet14t", "--out", str(file)]) == 0
    assert "<h1>resnet10t → resnet14t</h1>" in file.read_text() and "elements filled" in capsys.readouterr().out
