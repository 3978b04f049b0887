"""A hook of mkdocs that adds the pages outside of docs/ to the site, and turns links between files into links of pages.

The README, the changes and the results are pages of the site too. All pages link to files by their places in the
repository, so that the links work there. This hook makes the links work on the site. A link to a file that is not on
the site becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "results/README.md": "results/index.md",
}
FOLDERS = ("results/tables/*.md", "results/tables/*.csv", "results/figures/*")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:]*)(#[^)]*)?\)")  # "!" for a picture, the text, the file, the section


def pages() -> dict[str, str]:
    """Return the files outside of docs/ that the site has: paths in the repository, and paths on the site."""
    found = [file.relative_to(ROOT).as_posix() for pattern in FOLDERS for file in sorted(ROOT.glob(pattern))]
    return PAGES | {path: path for path in found}


def on_files(files: Files, config) -> Files:
    for path, place in pages().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    if not markdown.startswith("# "):
        page.meta.setdefault("title", titled(Path(page.file.src_uri).stem))
    return linked(markdown, page.file.src_uri, {file.src_uri for file in files})


def titled(name: str) -> str:
    """Return the title of a page without a heading: "Table 1" for table01, and else the name of its file."""
    return re.sub(r"^table0*(\d+)", r"Table \1", name).replace("_", " ")


def linked(markdown: str, place: str, there: set[str]) -> str:
    """Return the text of a page with its links to files of the repository turned into links to pages of the site.

    Args:
        markdown: The text of the page.
        place: The path of the page on the site.
        there: The paths of all files of the site.
    """
    places = pages()
    path = next((path for path, other in places.items() if other == place), f"docs/{place}")

    def replaced(link: re.Match) -> str:
        picture, text, file, section = link.groups()
        if not file:
            return link.group()
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        goal = places.get(wanted, wanted.removeprefix("docs/"))
        if goal not in there:
            return text
        return f"{picture}[{text}]({posixpath.relpath(goal, posixpath.dirname(place))}{section or ''})"

    return LINK.sub(replaced, markdown)
