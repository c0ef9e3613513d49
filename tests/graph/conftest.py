"""What the tests of compiled layers share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from implicitcore.graph.compiled import CompiledFunction


@pytest.fixture
def only_for_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each function the graph for any size is compiled; that of its first sizes alone runs as
    it was traced.

    Which takes half the time: what differs between the two is the compiler's, and is met where this
    is not used, as with Anderson in test_compile, and in test_fused.
    """
    compiler = CompiledFunction._compile

    def compile_(self: CompiledFunction, graph: Any, examples: list[Any]) -> Any:
        if any(isinstance(each, torch.SymInt) for each in examples):
            return compiler(self, graph, examples)

        def recorded(*arguments: Any) -> Any:
            results = graph(*arguments)
            self._ran.last = graph, arguments, results
            return results

        return recorded

    monkeypatch.setattr(CompiledFunction, "_compile", compile_)
