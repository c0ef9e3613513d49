"""What a graph takes of a cell: layouts, states of more dimensions, attention, and threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.errors import ConfigError, InputError
from implicitcore.graph.compiled import CompiledFunction
from implicitcore.testing.dense import relative_error

pytestmark = pytest.mark.filterwarnings(  # of torch, about what it looks at itself
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)


@pytest.fixture(autouse=True)
def _only_traced(monkeypatch):
    """What torch traced is run as it is: the compiler is not the point."""
    monkeypatch.setattr(CompiledFunction, "_built", lambda self, graph, examples: graph)


class Tokens(nn.Module):
    """A linear map with a bias, of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 12)

    def forward(self, z, x):
        return torch.tanh(0.2 * self.linear(z)[..., :4] + x)


class Attention(Tokens):
    dropout = 0.0

    def forward(self, z, x):
        q, k, v = (part.unflatten(-1, (2, 2)).mT for part in self.linear(z).chunk(3, -1))
        found = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
        return torch.tanh(0.2 * found.mT.flatten(2) + x)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z, x):
        return torch.tanh(0.2 * self.conv(z) + x)


def _layer(cell: Any) -> ic.ImplicitLayer:
    solver = ic.Picard(tol=1e-6, max_steps=100)
    return ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=ic.Implicit(solver))


def _values(layer, x):
    x = x.detach().requires_grad_()
    z = layer(x)
    return [z.detach(), *torch.autograd.grad(z.sin().sum(), [x, *layer.parameters()])]


def _check(layer, fast, x):
    expected = [tensor.double() for tensor in _values(layer, x)]
    assert relative_error(_values(fast, x), expected) < 1e-4


@pytest.mark.parametrize("cell", [Tokens, Attention])
def test_states_of_tokens_in_a_batch_of_any_size(cell):
    """A linear map with a bias made the batch of the trace a constant, and attention was refused
    for the dropout that it may have."""
    torch.manual_seed(0)
    layer = _layer(cell())
    fast = ic.compile(layer)
    for batch in (3, 2, 5, 1):
        _check(layer, fast, torch.randn(batch, 5, 4))


def test_attention_with_dropout_is_refused():
    cell = Attention()
    cell.dropout = 0.5
    with pytest.raises(InputError, match="draws random numbers"):
        ic.compile(_layer(cell))(torch.randn(2, 5, 4))


def test_a_cell_that_fixes_the_size_of_the_batch_is_refused():
    layer = _layer(lambda z, x: 0.2 * z.mul(int(z.shape[0])) / 3 + x)
    with pytest.raises(InputError, match="the size of the batch for a constant"):
        ic.compile(layer)(torch.randn(3, 3))


def test_channels_last_and_other_strides():
    torch.manual_seed(0)
    layer = _layer(Convolution())
    fast = ic.compile(layer)
    x = torch.randn(2, 3, 5, 6)
    others = x.transpose(2, 3).contiguous().transpose(2, 3), x[:1].expand(2, 3, 5, 6), x.flip(3)
    for given in (x.to(memory_format=torch.channels_last), *others):
        _check(layer, fast, given)
    for weight in layer.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)
    _check(layer, fast, x)


def _doubled(module: nn.Module, given: Any, found: Any) -> Any:
    return 2 * found


def test_hooks_of_the_layer_itself_are_refused():
    layer = _layer(Tokens())
    fast, x = ic.compile(layer), torch.randn(2, 5, 4)
    expected = fast(x)
    handle = layer.register_forward_hook(_doubled)
    with pytest.raises(ConfigError, match="own hooks: register them on it"):
        fast(x)
    handle.remove()
    fast.register_forward_hook(_doubled)
    torch.testing.assert_close(fast(x), 2 * expected)


def test_a_thread_waits_while_another_traces():
    """While f is traced its modules hold tensors of the trace: the other one computed with them."""
    torch.manual_seed(0)
    tracing, done = threading.Event(), threading.Event()
    first, found = threading.current_thread(), []

    class Slow(Tokens):
        def forward(self, z, x):
            traced = type(self.linear.weight) is not nn.Parameter
            if traced and threading.current_thread() is first and not tracing.is_set():
                tracing.set()
                done.wait(0.5)
            return super().forward(z, x)

    cell, x = Slow(), torch.randn(2, 5, 4)
    layer = _layer(cell)
    fast = ic.compile(layer)

    def other():
        tracing.wait(60)
        try:
            found.append(fast(x).detach())
        except Exception as error:  # which the thread would lose
            found.append(error)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    mine = fast(x).detach()
    thread.join()
    expected = layer(x).detach()
    assert isinstance(found[0], torch.Tensor), found[0]
    for z in (mine, found[0]):
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-5)
    assert type(cell.linear.weight) is nn.Parameter
