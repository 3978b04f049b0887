"""A hook of mkdocs: the pages of the site that lie outside of docs/, and links between files of the repository.

The README, the changes and the results are pages of the site too, and all pages link to files as they lie in the
repository, so that the links lead somewhere on both. A link to a file that the site does not have keeps its text alone.
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
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:]*)(#[^)]*)?\)")  # a picture or not, the text, the file, the place in it


def pages() -> dict[str, str]:
    """The files outside of docs/ that the site has: their paths in the repository and on the site."""
    found = [file.relative_to(ROOT).as_posix() for pattern in FOLDERS for file in sorted(ROOT.glob(pattern))]
    return PAGES | {path: path for path in found}


def on_files(files: Files, config) -> Files:
    for path, place in pages().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    return linked(markdown, page.file.src_uri, {file.src_uri for file in files})


def linked(markdown: str, place: str, there: set[str]) -> str:
    """The text of a page with its links to files of the repository turned into links to pages of the site.

    `place` is that of the page on the site, and `there` has the places of all files of the site.
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
