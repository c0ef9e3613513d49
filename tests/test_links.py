"""The links of every page in Markdown, the READMEs among them, which the site's build does not see.

What lies here is looked up. What lies elsewhere has an address that a reader can follow; `make
linkcheck` follows it, where there is a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from support.sites import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("plugins/*/*.md"), *ROOT.glob("docs/**/*.md")],
    key=str,
)
MADE = ROOT / "docs" / "gallery"  # by the build, which checks the links into it
HOST = re.compile(r"([a-z0-9-]+\.)+[a-z]{2,}")


def links(page: Path) -> Iterator[str]:
    """The targets of links and pictures, but not those of Sphinx's labels."""
    for block in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        for token in block.children or ():
            found = token.attrGet("href") or token.attrGet("src")
            if found:
                yield str(found)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as its site and a code forge name them, and its own labels."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ +(.*?) *#*$", text, re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*kept, *re.findall(r"^\(([\w-]+)\)=$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path):
    lost = []
    for link in links(page):
        address = urlsplit(link)
        if address.scheme or address.netloc:
            well_formed = address.scheme == "https" and HOST.fullmatch(address.netloc)
            if not well_formed or " " in unquote(link):
                lost.append(link)
            continue
        target = (page.parent / unquote(address.path)).resolve() if address.path else page
        if MADE in target.parents:
            continue
        if not target.exists() or not target.is_relative_to(ROOT):
            lost.append(link)
        elif address.fragment and address.fragment not in anchors(target):
            lost.append(link)
    assert lost == []


def test_the_check_sees_what_is_lost(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# One [two](a.md)\n\n(here)=\n## Three & four\n\n![p](b.png) <https://c.de>\n")
    assert list(links(page)) == ["a.md", "b.png", "https://c.de"]
    assert {"three--four", "here"} <= anchors(page)
    assert len(PAGES) > 40
    assert sum(1 for page in PAGES for _ in links(page)) > 60
