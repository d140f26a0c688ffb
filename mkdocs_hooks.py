"""Hooks of the documentation site (``mkdocs.yml``): pages that lie outside ``docs/``, and links that leave it.

Links in the pages are relative to the files of the repository, so that they work where the files are read. On the site
a link to a page of the site stays a link, and a link to any other file becomes the path of that file.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent
#: Pages of the site that lie outside ``docs/``, with what the site calls them.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "leaderboard/rules.md": "rules.md"}
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\[\]]*)\]\((?P<to>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside ``docs/``."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links of the site, and those that leave it into paths."""
    here = Path(page.file.abs_src_path or "").parent
    docs = Path(config.docs_dir)

    def rewritten(link: re.Match[str]) -> str:
        to = unquote(link["to"])
        if "://" in to or to.startswith("mailto:"):
            return link[0]
        target = Path(os.path.normpath(here / to))
        path = target.relative_to(ROOT).as_posix()
        name = PAGES.get(path) or (target.relative_to(docs).as_posix() if target.is_relative_to(docs) else "")
        if files.get_file_from_path(name) is None:
            if not target.exists():
                return link[0]  # The build says that it leads nowhere.
            return link["text"] if link["text"].strip("`") == path else f"{link['text']} (`{path}`)"
        relative = posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
        return f"{link['picture']}[{link['text']}]({relative}{link['anchor'] or ''})"

    return _LINK.sub(rewritten, markdown)
