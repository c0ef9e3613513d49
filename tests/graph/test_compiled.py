"""Functions of tensors in one graph: what is called without torch's checks, and loops in C++."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from support.operations import python_calls
from torch import fx, nn
from torch._higher_order_ops.while_loop import while_loop_op
from torch.fx.experimental.proxy_tensor import make_fx

from implicitcore.graph.compiled import CompiledFunction, _is_of_known, _Ran, compiled
from implicitcore.graph.loop_inputs import own_inputs
from implicitcore.graph.prepared import Form, Prepared, Recent
from implicitcore.graph.products import plain_products, scaled_sums


class Recorded(CompiledFunction):
    """With a compiler that compiles nothing, and counts its graphs."""

    def __init__(self, function) -> None:
        super().__init__(function, {})
        self.graphs = 0

    def _built(self, graph: Any, examples: list[Any]) -> Any:
        del examples
        self.graphs += 1
        return graph


def _checked(monkeypatch: pytest.MonkeyPatch, function: Any) -> list[int]:
    """Grows by one at each call that torch checks."""
    seen: list[int] = []
    checked = function._checked

    def counted(*tensors: torch.Tensor) -> Any:
        seen.append(1)
        return checked(*tensors)

    monkeypatch.setattr(function, "_checked", counted)
    return seen


@torch.no_grad()
def test_a_kind_that_was_met_is_not_checked_again(monkeypatch):
    function = Recorded(lambda a, b: (a.sum(0) + b, a * 2))
    seen = _checked(monkeypatch, function)
    for batch, checks in ((3, 1), (3, 1), (5, 2), (5, 2), (3, 2), (7, 3)):
        a, b = torch.randn(batch, 4), torch.randn(4)
        found = function(a, b)
        assert isinstance(found, tuple)
        assert torch.equal(found[0], a.sum(0) + b)
        assert torch.equal(found[1], a * 2)
        assert len(seen) == checks
    assert function.graphs == 2  # of three, and of any size


@torch.no_grad()
@torch._dynamo.config.patch(recompile_limit=1)  # 8, as it is
def test_more_kinds_than_torch_keeps_graphs_of_one_code():
    function = Recorded(lambda a: (2 * a.sin(),))
    square = torch.randn(4, 4)
    kinds = [square, square.t(), square[:0], square[:1], torch.randn(4, 1).expand(4, 4), square[:3]]
    graphs = []
    for _ in range(2):
        for a in kinds:
            assert torch.equal(function(a)[0], 2 * a.sin())
        graphs.append(function.graphs)
    assert graphs[0] == graphs[1] > 2
    assert len(function.entries) == len(kinds)


@torch.no_grad()
def test_what_a_graph_depends_on_is_told_apart():
    function = Recorded(lambda a, b: (a @ b, a + b))
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    for one, other in (
        (a, b),
        (a, a),  # one argument of its graph
        (b, a),
        (a.t(), b),
        (a.double(), b.double()),
        (torch.nn.Parameter(a), b),
        (a[:, :3], b[:3, :3].expand(3, 3)),
    ):
        if one.shape != other.shape:
            one = one[:3]
        for _ in range(2):
            found = function(one, other)
            assert torch.equal(found[0], one @ other)
            assert torch.equal(found[1], one + other)


def test_another_setting_of_torch_is_checked(monkeypatch):
    function = Recorded(lambda a: (a * 2,))
    seen, a = _checked(monkeypatch, function), torch.ones(3)
    with torch.no_grad():
        function(a)
        function(a)
    assert len(seen) == 1
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with torch.no_grad():
            function(a)
        assert len(seen) == 2
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_results_are_in_the_order_of_the_function():
    function = Recorded(lambda a, b: (b + 1, a, b + 1, a + b))
    a, b = torch.ones(3), torch.zeros(3)
    for _ in range(2):
        found = function(a, b)
        assert [value[0].item() for value in found] == [1, 1, 1, 1]
    function = Recorded(lambda a: (lambda c, d: (d, c, d))(a.cos(), a.sin()))
    for _ in range(2):
        found = function(a)
        assert torch.equal(found[0], a.sin())
        assert torch.equal(found[1], a.cos())
        assert torch.equal(found[2], a.sin())


def test_a_call_is_of_the_kind_of_the_one_before_where_its_tensors_are():
    def call(flat, *x):
        return Form.of(x, flat), flat, Prepared(Any, flat, Any, x, {})  # pyright: ignore[reportArgumentType]

    a, b, c = (torch.zeros(3, 2) for _ in range(3))
    patterns = [(c, a, b), (c, a, a), (a, a, b), (a, b, a), (a, a, a)]
    for place, (flat, *x) in enumerate(patterns):
        recent = Recent.of(tuple(x), flat, call(flat, *x)[2])
        assert recent is not None
        for at, other in enumerate(patterns):
            form, start, _ = call(*other)
            found = recent.again(form, start, ())
            assert (found is not None) == (at == place)
            if found is not None:
                assert found.flat is start
                assert [*map(id, found.tensors)] == [*map(id, other[1:])]
        for other in (a.double(), torch.zeros(2, 3).T, a.clone().requires_grad_(), nn.Parameter(a)):
            form, start, _ = call(flat, other, *x[1:])
            assert recent.again(form, start, ()) is None
        again = [torch.ones_like(tensor) for tensor in (c, a, b)]
        form, start, _ = call(*again)
        assert (recent.again(form, start, ()) is not None) == (place == 0)


@torch.no_grad()
def test_a_graph_that_gives_more_than_the_function_is_not_called_by_itself():
    """What torch puts around it writes the rest where it belongs."""

    class Written(CompiledFunction):
        def _built(self, graph: Any, examples: list[Any]) -> Any:
            del examples

            def inner(a):
                found = graph(a)
                results = *found, a + 1
                self._note(_Ran(inner, (a,), results))
                return results

            def outer(a):
                *found, more = inner(a)
                a.copy_(more)
                return found

            return outer

    function, a = Written(lambda a: (2 * a,), {}), torch.zeros(3)
    for count in range(1, 4):
        function(a)
        assert a.tolist() == [count] * 3
    assert len(function.entries) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
@torch.no_grad()
def test_a_graph_is_called_without_what_torch_puts_around_it():
    function = CompiledFunction(lambda a, b: (a * 2 + b, b.sin()), {})
    a, b = torch.randn(5), torch.randn(5)
    function(a, b)
    assert python_calls(lambda: function(a, b)) <= 12
    found = function(a, b)
    assert torch.equal(found[0], a * 2 + b)
    torch.testing.assert_close(found[1], b.sin())


SUMS = {
    "of a product": lambda u, a, b: torch.add(u, a @ b, alpha=0.5),
    "to a product": lambda u, a, b: torch.add(a @ b, u, alpha=0.5),
    "of two": lambda u, a, b: torch.add(a @ b, b @ a, alpha=-2),
    "in place": lambda u, a, b: (2 * u).add_((a @ b).clone(), alpha=1 / 3),
    "of a row": lambda u, a, b: torch.add(a @ b, u[0], alpha=3),
    "of another dtype": lambda u, a, b: torch.add(u, (a @ b).float(), alpha=0.25),
}


@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
@pytest.mark.parametrize("name", SUMS)
def test_a_product_in_a_sum_has_the_factor_that_it_has_there(name):
    """torch 2.13 by itself forgets it, and gives u + a b."""
    torch.manual_seed(0)
    u, a, b = torch.randn(3, 33, 33, dtype=torch.float64).unbind(0)
    found = compiled(lambda *given: (SUMS[name](*given),), device=u.device)(u, a, b)
    torch.testing.assert_close(found[0], SUMS[name](u, a, b))


def test_sums_of_matrices_with_a_factor_are_written_with_a_product():
    u, a, b = torch.randn(3, 4, 4).unbind(0)
    for name, add in SUMS.items():
        graph = make_fx(add, tracing_mode="fake")(u, a, b)
        scaled_sums(graph.graph)
        graph.graph.lint()
        graph.recompile()
        sums = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
        assert all(not node.kwargs for node in sums), name
        torch.testing.assert_close(graph(u, a, b), add(u, a, b))


def test_products_in_compiled_code_are_those_of_torch():
    """Small ones are sums in the kernels, and no bias is copied before its product."""
    torch.manual_seed(0)
    bias, left = torch.randn(3), torch.randn(2, 4)
    for dtype in (torch.float32, torch.float64, torch.complex64):
        for size in (3, 300):
            a, b, c = left.to(dtype), torch.randn(4, size, dtype=dtype), bias[:1].to(dtype)
            graph = make_fx(lambda a, b, c: (torch.addmm(c, a, b), a @ b), tracing_mode="fake")
            graph = graph(a, b, c)
            plain_products(graph.graph)
            graph.graph.lint()
            graph.recompile()
            names = [str(node.target) for node in graph.graph.nodes]
            assert ("aten.addmm.default" in names) == dtype.is_complex
            assert ("aten.mm.default" in names) == (dtype.is_complex or size == 300)
            torch.testing.assert_close(graph(a, b, c), (torch.addmm(c, a, b), a @ b))


def test_what_a_loop_reads_has_a_memory_of_its_own():
    graph, value = fx.Graph(), torch.ones(2, 2)
    z, weight = graph.placeholder("z"), graph.placeholder("w")
    view = graph.call_function(torch.ops.aten.t.default, (weight,))
    size = graph.call_function(torch.ops.aten.sym_size.int, (z, 0))
    for node in (z, weight, view):
        node.meta["val"] = value
    loop: Any = graph.call_function(while_loop_op, ("going", "step", (z,), (weight, view, size)))
    graph.output(loop)
    own_inputs(graph)
    _, _, carried, read = loop.args
    assert (carried, read[0], read[2]) == ((z,), weight, size)
    assert read[1].target is torch.ops.aten.clone.default
    assert read[1].args == (view,)
    graph.lint()


PROGRAM = """
import torch
from torch._higher_order_ops.while_loop import while_loop
from implicitcore.graph.compiled import compiled

def solve(z, w):
    same = w.unsqueeze(0).squeeze(0)  # a view shaped like its base
    start = torch.zeros((), dtype=torch.int64), z
    going, step = lambda k, z: k < 5, lambda k, z: (k + 1, (z @ same).tanh())
    return while_loop(going, step, start)

run, w = compiled(solve, device=torch.device("cpu"), in_cpp=True), torch.eye(4) / 2
with torch.no_grad():
    for batch in (2, 2, 3, 3):
        z = expected = torch.rand(batch, 4)
        for _ in range(5):
            expected = (expected @ w).tanh()
        torch.testing.assert_close(run(z, w)[1], expected)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_loop_in_cpp_frees_what_it_reads_once():
    # In a process of its own, which it ended.
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.parametrize("others", [False, True])
def test_what_operations_of_others_give_is_compared_with_what_they_announced(others):
    inner, outer = fx.Graph(), fx.Graph()
    target = torch.ops._test.leaky_relu.default if others else torch.ops.aten.relu.default
    inner.call_function(target, (inner.placeholder("z"),))
    outer.get_attr("body")
    assert _is_of_known(fx.GraphModule({"body": fx.GraphModule({}, inner)}, outer)) != others
