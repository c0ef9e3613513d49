"""ic.tune is the lab's, found at the call."""

import sys

import pytest
import torch

import implicitcore as ic


def test_without_the_lab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "implicitcore_lab", None)
    with pytest.raises(ic.PluginError, match="implicitcore-lab: pip install implicitcore-lab"):
        ic.tune("deq", torch.ones(2, 3), lambda z, x: 0.5 * z + x)


def test_what_the_lab_itself_lacks_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "implicitcore_lab", raising=False)
    monkeypatch.setitem(sys.modules, "implicitcore.extend", None)
    with pytest.raises(ModuleNotFoundError, match=r"implicitcore\.extend"):
        ic.tune("deq", torch.ones(2, 3), lambda z, x: 0.5 * z + x)


def test_it_is_the_labs(monkeypatch: pytest.MonkeyPatch):
    """Which the page on tuning runs."""
    lab = pytest.importorskip("implicitcore_lab")
    layer, x, loss = ic.build("deq", lambda z, x: 0.5 * z + x), torch.ones(4, 3), torch.sum
    monkeypatch.setattr(lab, "tune", lambda *args, **options: (args, options))
    assert ic.tune(layer, x, trials=2) == ((layer, x, None), {"trials": 2})
    cell = layer.dynamics.cell
    assert ic.tune("deq", x, cell, loss=loss) == (("deq", x, cell), {"loss": loss})
