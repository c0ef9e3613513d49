"""The two columns of docs/migrate.md agree, where the other library is installed."""

import re
import warnings

import pytest
import torch
from markdown_it import MarkdownIt
from support.sites import ROOT

PAGE = ROOT / "docs" / "migrate.md"
LIBRARIES = ("torchdeq", "torchdiffeq", "torchode", "diffrax", "optimistix")


def python_blocks() -> list[str]:
    tokens = MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == "python"]


def pairs(library: str) -> list[list[str]]:
    """The columns of a library's pairs, theirs and ours, each after the page's first block."""
    found = python_blocks()
    theirs = [
        i for i, block in enumerate(found) if re.search(rf"^(from|import) {library}\b", block, re.M)
    ]
    return [[found[0], *(found[i + shift] for i in theirs)] for shift in (0, 1)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_columns_give_the_same(library: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        pytest.importorskip(library)
        theirs, ours = map("\n".join, pairs(library))
        left: dict = {}
        exec(theirs, left)
    right: dict = {}
    exec(ours, right)
    for name in ("z", "loss"):
        assert (name in left) == (name in right)
        if name in left:
            found = torch.as_tensor(left[name].tolist())
            torch.testing.assert_close(found, right[name].detach(), atol=1e-4, rtol=1e-4)


def test_every_library_has_its_pair():
    assert all(len(pairs(library)[0]) > 1 for library in LIBRARIES)
