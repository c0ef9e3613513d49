"""Solves write nothing onto the modules that threads, tasks, generators and layers share."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import inputs

PARAMETRIZE = {
    "spectral": parametrizations.spectral_norm,
    "weight": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}
SOLVERS = {
    "picard": ic.Picard(tol=1e-9, max_steps=300),
    "anderson": ic.Anderson(tol=1e-9),
    "tsit5": ic.Tsit5(),
}


class Cell(nn.Module):
    """A parametrised weight at depth, and a call that a test may hook."""

    def __init__(self, parametrized=parametrizations.spectral_norm):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(parametrized(nn.Linear(6, 6)), nn.Tanh())
        self.double()
        self.hook = lambda: None

    def forward(self, z, x):
        self.hook()
        return self.body(0.5 * z + x)


def linear(cell) -> Any:
    return cell.body[0]


def plist(cell) -> Any:
    return linear(cell).parametrizations.weight


def follows(cell):
    """Whether the weight is computed from its parameters as they are now."""
    with torch.no_grad():
        before = linear(cell).weight.clone()
        for parameter in plist(cell).parameters():
            parameter.add_(torch.randn_like(parameter))
        fresh, now = plist(cell)(), linear(cell).weight
    return torch.equal(now, fresh) and not torch.equal(now, before)


def gradients(layer, x):
    parameters = list(layer.parameters())
    return torch.autograd.grad(layer(x).square().sum(), parameters)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", PARAMETRIZE)
def test_threads_train_and_infer_with_one_layer(name, solver):
    cell = Cell(PARAMETRIZE[name]).eval()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS[solver])
    data = [inputs(seed=seed) for seed in range(8)]
    with torch.no_grad():
        outputs = [layer(x) for x in data]
    expected = [gradients(layer, x) for x in data]

    def work(index):
        found = [gradients(layer, data[index]) for _ in range(3)]
        with torch.no_grad():
            return found, [layer(data[index]) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8), timeout=120))
    for (found, infered), right, output in zip(results, expected, outputs, strict=True):
        assert max(relative_error(each, right) for each in found) < 1e-12
        assert max(relative_error([each], [output]) for each in infered) < 1e-12
    assert follows(cell)


def test_the_order_in_which_threads_leave_does_not_matter():
    cell = Cell().eval()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["picard"])
    second, left = threading.Event(), threading.Event()

    def hook():
        if threading.current_thread().name == "first":
            second.wait(10)
        elif threading.current_thread().name == "second":
            second.set()
            left.wait(10)

    def first():
        layer(inputs())
        left.set()

    cell.hook = hook
    threads = [
        threading.Thread(target=first, name="first"),
        threading.Thread(target=layer, args=(inputs(),), name="second"),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    cell.hook = lambda: None
    assert follows(cell)
    layer(inputs()).sum().backward()
    assert plist(cell).original.grad.abs().sum() > 0


def test_tasks_hold_blocks_that_overlap():
    cell = Cell().eval()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["anderson"])
    inside, weights = [asyncio.Event() for _ in range(2)], {}

    async def task(name, own, other):
        with ic.frozen_randomness(layer):
            weights[name] = [linear(cell).weight]
            own.set()
            await other.wait()  # both are inside
            layer(inputs())
            await asyncio.sleep(0.01 * name)
            weights[name].append(linear(cell).weight)

    async def main():
        await asyncio.gather(task(1, *inside), task(2, *reversed(inside)))

    asyncio.run(main())
    assert all(first is second for first, second in weights.values())
    assert weights[1][0] is not weights[2][0]  # each has its own, with its own graph
    assert follows(cell)


def blocks(layer):
    with ic.frozen_randomness(layer):
        yield linear(layer.dynamics.cell).weight
        yield linear(layer.dynamics.cell).weight


def test_a_block_in_a_generator_counts_while_it_runs():
    cell = Cell().eval()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["anderson"])
    paused = blocks(layer)
    held = next(paused)
    assert follows(cell)
    assert next(paused) is held  # the block kept the weight that it began with
    assert follows(cell)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_generators_that_are_closed_in_any_order(order):
    cell = Cell().eval()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["anderson"])
    generators = [blocks(layer), blocks(layer)]
    for generator in generators:
        next(generator)
    for index in order:
        generators[index].close()
        assert follows(cell)
    abandoned = blocks(layer)
    next(abandoned)
    del abandoned
    gc.collect()
    assert follows(cell)


def test_a_block_in_an_asynchronous_generator():
    cell = Cell().eval()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["anderson"])

    async def generate():
        with ic.frozen_randomness(layer):
            yield linear(cell).weight
            await asyncio.sleep(0)
            yield linear(cell).weight

    async def main():
        found = []
        async for weight in generate():
            found.append(weight)
            assert follows(cell)
        assert found[0] is found[1]
        async for _ in generate():
            break  # abandoned

    asyncio.run(main())
    assert follows(cell)


def test_a_block_of_another_context_manager_counts():
    cell = Cell().eval()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["anderson"])

    @contextlib.contextmanager
    def wrapped():
        with ic.frozen_randomness(layer):
            yield

    with wrapped():
        held = linear(cell).weight
        assert linear(cell).weight is held
    with contextlib.ExitStack() as stack:
        stack.enter_context(wrapped())
        held = linear(cell).weight
        assert linear(cell).weight is held
    assert follows(cell)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("when", [1, 3])
def test_an_interrupt_inside_the_cell(when, solver, error):
    cell = Cell()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS[solver])
    count = iter(range(1, 100))

    def hook():
        if next(count) == when:
            raise error

    cell.hook = hook
    with pytest.raises(error):
        layer(inputs())
    cell.hook = lambda: None
    assert follows(cell.eval())
    layer(inputs()).sum().backward()
    assert plist(cell).original.grad.isfinite().all()


def test_an_interrupt_inside_the_backward_pass():
    cell = Cell()
    layer = ic.ImplicitLayer(
        ic.FixedPoint(cell), solver=SOLVERS["tsit5"], gradient=ic.Checkpointed()
    )
    loss = layer(inputs()).sum()

    def hook():
        raise KeyboardInterrupt

    cell.hook = hook
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    cell.hook = lambda: None
    assert follows(cell.eval())


def test_layers_share_a_cell():
    cell, x = Cell(), inputs()
    state = copy.deepcopy(cell.state_dict())
    make = lambda gradient: nn.Sequential(  # noqa: E731
        *(
            ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["anderson"], gradient=gradient)
            for _ in range(2)
        )
    )
    found = gradients(make(ic.Implicit(ic.GMRES(tol=1e-11))), x)
    cell.load_state_dict(state)
    assert relative_error(found, gradients(make(ic.Unrolled()), x)) < 1e-6


def test_a_layer_inside_a_cell_joins_its_solve():
    inner_cell, counts = Cell(), []
    inner = ic.ImplicitLayer(ic.FixedPoint(inner_cell), solver=SOLVERS["picard"])
    norm = plist(inner_cell)[0]

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, z, x):
            counts.append(norm._u.clone())
            return 0.3 * self.inner(z) + x

    outer = ic.ImplicitLayer(ic.FixedPoint(Outer()), solver=SOLVERS["picard"])
    outer(inputs()).sum().backward()
    assert len(counts) > 5 and all(torch.equal(u, counts[0]) for u in counts)
    assert follows(inner_cell.eval())


@pytest.mark.parametrize("captured", ["closure", "attribute", "method", "nested", "global"])
def test_a_function_captures_a_parametrised_module(captured):
    """The power iteration moves once a solve, however the function came by the module."""
    global _cell
    cell = _cell = Cell()

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell
            self.dropout = nn.Dropout(0.5)  # of another part of the model

        def call(self, z, x):
            return self.cell(z, x)

    holder = Holder()
    inner = lambda z, x: cell(z, x)  # noqa: E731
    functions = {
        "closure": inner,
        "attribute": lambda z, x: holder.cell(z, x),
        "method": holder.call,
        "nested": lambda z, x: inner(z, x),
        "global": lambda z, x: _cell(z, x),
    }
    seen = []
    cell.hook = lambda: seen.append(plist(cell)[0]._u.clone())
    ic.fixed_point(functions[captured], torch.zeros_like(inputs()), inputs()).z.sum().backward()
    assert len(seen) > 3 and all(torch.equal(u, seen[0]) for u in seen)
    assert plist(cell).original.grad.abs().sum() > 0


_cell: Cell


def test_the_module_is_as_before_but_for_its_parameters():
    cell = Cell(parametrizations.weight_norm)
    keys, attributes = set(cell.state_dict()), set(vars(plist(cell)))
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS["anderson"])
    layer(inputs())
    assert set(cell.state_dict()) == keys and set(vars(plist(cell))) == attributes
    other = copy.deepcopy(cell)
    with torch.no_grad():
        plist(other).original0.mul_(2)
    assert relative_error([linear(other).weight], [linear(cell).weight * 2]) < 1e-12
    weight = linear(cell).weight.detach()
    linear(cell).weight = 2 * weight  # the right inverse
    assert relative_error([linear(cell).weight], [2 * weight]) < 1e-12
    parametrize.remove_parametrizations(linear(cell), "weight")
    assert isinstance(linear(cell).weight, nn.Parameter)
    layer(inputs())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_cell_reads_the_weight_of_its_solve_in_one_graph():
    torch._dynamo.reset()
    cell = Cell()
    compiled = torch.compile(cell, backend="eager", fullgraph=True)
    layers = [
        ic.ImplicitLayer(ic.FixedPoint(each), solver=SOLVERS["anderson"])
        for each in (cell, compiled)
    ]
    state = copy.deepcopy(cell.state_dict())
    results = []
    for layer in layers:
        cell.load_state_dict(state)
        results.append([gradients(layer, inputs()) for _ in range(3)][-1])
    torch._dynamo.reset()
    assert relative_error(*results) < 1e-10
