"""The pages of the documentation: what they name, and what the site makes of their links."""

import importlib.util
import inspect
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

import dpiat
from dpiat.plotting import plot_matching, plot_similarity
from dpiat.recipe import Recipe

ROOT = Path(__file__).parent.parent


def loaded(name: str) -> types.ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(monkeypatch) -> types.ModuleType:
    """scripts/site.py, which needs mkdocs on the site alone."""
    for name in ("mkdocs", "mkdocs.structure", "mkdocs.structure.files"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(File=None, Files=None))
    return loaded("site")


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"^::: ([\w.]+)$", page, flags=re.MULTILINE))
    for public in (*(getattr(dpiat, name) for name in dpiat.__all__), Recipe, plot_matching, plot_similarity):
        name = f"{public.__module__}.{public.__qualname__}"
        said = " ".join(inspect.getdoc(public).partition("\n\n")[0].split("\n"))
        assert name in named and f"| [`{public.__qualname__}`](#{name}) | {said} |\n" in page


def test_every_page_is_in_the_menu(site):
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text())
    pages = {page for group in yaml.safe_load(text)["nav"] for page in listed(group)}
    assert pages == {file.name for file in (ROOT / "docs").glob("*.md")} | set(site.PAGES.values())


def listed(group) -> list[str]:
    if isinstance(group, str):
        return [group]
    return [page for value in (group.values() if isinstance(group, dict) else group) for page in listed(value)]


@pytest.mark.parametrize(
    ("place", "text", "linked"),
    [
        ("index.md", "[a guide](docs/library.md#x)", "[a guide](library.md#x)"),
        ("library.md", "[results](../results/README.md)", "[results](results/index.md)"),
        ("results/index.md", "![b](figures/b.png)", "![b](figures/b.png)"),
        ("results/index.md", "[text](../configs/experiment/a.yaml)", "text"),
        (
            "index.md",
            "[paper](https://arxiv.org/abs/1), [here](#there)",
            "[paper](https://arxiv.org/abs/1), [here](#there)",
        ),
        ("library.md", "[a page](networks.md), [b](report.html)", "[a page](networks.md), [b](report.html)"),
    ],
)
def test_links_between_files_become_links_between_pages(site, monkeypatch, place, text, linked):
    monkeypatch.setattr(site, "pages", lambda: site.PAGES | {"results/figures/b.png": "results/figures/b.png"})
    there = {"library.md", "networks.md", "report.html", "results/index.md", "results/figures/b.png", "index.md"}
    assert site.linked(text, place, there) == linked


def test_a_page_of_results_has_the_title_of_its_table(site):
    assert (site.titled("table01"), site.titled("imagenette_modes")) == ("Table 1", "imagenette modes")


def test_the_drawings_are_of_todays_matching(tmp_path):
    loaded("draw_docs").draw(tmp_path)
    for name, mark in (("matching.svg", r"match-\d+-\d+"), ("report.html", r"<title>(.*?)</title>")):
        ours, committed = (re.findall(mark, (folder / name).read_text()) for folder in (tmp_path, ROOT / "docs"))
        assert ours == committed, f"docs/{name} is of another matching: run scripts/draw_docs.py"


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == dpiat.__version__
