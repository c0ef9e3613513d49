"""What the tests of compiled layers share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import python_loop

from implicitcore.graph import (
    fused,
    integration,
    kept,
    linear,
    loop,
    outputs,
    plan,
    steady,
    trajectory,
)
from implicitcore.graph.compiled import CompiledFunction

LOOPS = (fused, integration, kept, linear, loop, outputs, steady, trajectory)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traced graphs in a loop of Python: what would be compiled, without the time it takes."""
    for module in LOOPS:
        monkeypatch.setattr(module, "while_loop", python_loop.while_loop)
    monkeypatch.setattr(trajectory, "stacking_loop", python_loop.stacking_loop)
    monkeypatch.setattr(plan, "compiled", lambda function, **options: function)


@pytest.fixture
def only_for_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each function the graph for any size is compiled; that of its first sizes alone runs as
    it was traced.

    Which takes half the time: what differs between the two is the compiler's, and is met where this
    is not used, as with Anderson in test_compile, and in test_fused.
    """
    compiler = CompiledFunction._built

    def built(self: CompiledFunction, graph: Any, examples: list[Any]) -> Any:
        any_size = any(isinstance(each, torch.SymInt) for each in examples)
        return compiler(self, graph, examples) if any_size else graph

    monkeypatch.setattr(CompiledFunction, "_built", built)
