"""Fixtures that several folders of tests share."""

import sys

import pytest
from support.sites import Site


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on this process's path, for distributions with plugins; its modules are forgotten
    afterwards."""
    known = set(sys.modules)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield Site(folder)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
