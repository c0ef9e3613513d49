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


def pair(library: str) -> tuple[str, str, str]:
    """The page's first block, the library's and ours."""
    found = python_blocks()
    [theirs] = [
        i for i, block in enumerate(found) if re.search(rf"^(from|import) {library}\b", block, re.M)
    ]
    return found[0], found[theirs], found[theirs + 1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_columns_give_the_same(library: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        pytest.importorskip(library)
        first, theirs, ours = pair(library)
        left: dict = {}
        exec(f"{first}\n{theirs}", left)
    right: dict = {}
    exec(f"{first}\n{ours}", right)
    z = torch.as_tensor(left["z"].tolist())
    assert z.shape == right["z"].shape
    torch.testing.assert_close(z, right["z"], atol=1e-4, rtol=1e-4)


def test_every_library_has_its_pair():
    assert all(pair(library) for library in LIBRARIES)
