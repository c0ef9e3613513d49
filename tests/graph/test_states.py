"""Compiled layers refuse the states, and the values of f, that the layers refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import implicitcore as ic

pytestmark = pytest.mark.usefixtures("plainly")

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)


def layer(dynamics) -> ic.ImplicitLayer:
    return ic.ImplicitLayer(dynamics, solver=ic.Picard(tol=1e-8, max_steps=100))


def pair(z, x):
    a, b = z.values() if isinstance(z, dict) else z
    found = torch.tanh(0.2 * b + x), 0.5 * a - x
    return dict(zip(z, found, strict=True)) if isinstance(z, dict) else type(z)(found)


STATES = {
    "whole numbers": torch.zeros(3, 4, dtype=torch.int64),
    "batches": (torch.zeros(3, 4).double(), torch.zeros(2, 4).double()),
    "no batch": torch.zeros(()).double(),
    "nothing": (),
    "a number": 3.0,
    "shared": ic.shared(torch.zeros(3, 4).double()),
}


@pytest.mark.parametrize("name", STATES)
def test_no_state_is_refused_in_the_words_of_the_layer(name):
    eager = layer(ic.FixedPoint(pair))
    with pytest.raises(ic.InputError) as expected:
        eager(X, STATES[name])
    with pytest.raises(ic.InputError) as found:
        ic.compile(eager)(X, STATES[name])
    assert str(found.value) == str(expected.value)


RETURNED = {
    "one column": lambda z, x: (0.3 * z + x)[:, :1],
    "one sample": lambda z, x: (0.3 * z + x).mean(0, keepdim=True),
    "a tuple": lambda z, x: (0.3 * z + x,),
    "another dtype": lambda z, x: (0.3 * z + x).float(),
    "a row": lambda z, x: (0.3 * z + x).reshape(-1),
    "nothing": lambda z, x: None,
}


@pytest.mark.parametrize("kind", [ic.FixedPoint, "field"])
@pytest.mark.parametrize("name", RETURNED)
def test_what_f_returns_is_refused_where_it_is_no_state(name, kind):
    function, solver = RETURNED[name], ic.Picard(tol=1e-8)
    dynamics = ic.FixedPoint(function)
    if kind == "field":
        dynamics, solver = ic.VectorField(lambda t, z, x: function(z, x)), ic.Euler(dt=0.5)
    eager = ic.ImplicitLayer(
        dynamics, solver=solver, start=ic.Identity(), gradient=gradient_of(solver)
    )
    with pytest.raises(ic.InputError, match="returned"):
        eager(X)
    with pytest.raises(ic.InputError, match=f"^{type(dynamics).__name__} returned"):
        ic.compile(eager)(X)


def gradient_of(solver):
    return ic.Checkpointed() if isinstance(solver, ic.Euler) else ic.Implicit()


def test_entries_in_another_order_are_no_state():
    """Of the same shapes, they would be taken one for the other."""
    turned = ic.FixedPoint(lambda z, x: dict(reversed(pair(z, x).items())))
    state = {"a": torch.zeros_like(X), "b": torch.zeros_like(X)}
    for call in (layer(turned), ic.compile(layer(turned))):
        with pytest.raises(ic.InputError, match="expected the structure of z"):
            call(X, state)


def test_each_structure_of_the_state_is_compiled_for_itself():
    eager = layer(ic.FixedPoint(pair))
    compiled = ic.compile(eager)
    zero = torch.zeros_like(X)
    for state in ({"a": zero, "b": zero}, {"b": zero, "a": zero}, (zero, zero), [zero, zero]):
        expected, found = eager(X, state), compiled(X, state)
        assert type(found) is type(expected)
        if isinstance(state, dict):
            assert list(found) == list(expected)
        torch.testing.assert_close(found, expected)


GAIN, PART, epoch = 0.5, nn.Linear(4, 4).double(), 0


def of_globals(z, x):
    return torch.tanh(GAIN * PART(z) + x)


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gain, self.epoch = nn.Linear(4, 4).double(), 0.3, 0.1

    def method(self, z, x):
        return torch.tanh(self.gain * self.cell(z) + self.epoch + x)


def test_what_functions_have_of_globals_is_followed(monkeypatch):
    check_follows(
        of_globals,
        lambda: monkeypatch.setitem(globals(), "GAIN", 0.1),
        lambda: monkeypatch.setitem(globals(), "PART", nn.Linear(4, 4).double()),
    )


def test_what_functions_have_of_a_closure_is_followed():
    gain, part = 0.5, nn.Linear(4, 4).double()

    def change() -> None:
        nonlocal gain, part
        gain, part = 0.5 - gain, nn.Linear(4, 4).double()

    check_follows(lambda z, x: torch.tanh(gain * part(z) + x), change, change)


def test_what_a_method_has_of_its_object_is_followed():
    owner = Owner()
    check_follows(owner.method, lambda: setattr(owner, "gain", 0.1))
    check_follows(lambda z, x: owner.method(z, x), lambda: setattr(owner, "gain", 0.2))
    check_follows(
        lambda z, x: (owner.gain * owner.cell(z) + x).sin(), lambda: setattr(owner, "gain", 0.1)
    )


def test_a_global_named_as_an_attribute_of_f_compiles_nothing_anew(monkeypatch):
    compiled = ic.compile(layer(ic.FixedPoint(Owner().method)))
    compiled(X)
    plans = [*compiled.plans.values()]
    monkeypatch.setitem(globals(), "epoch", epoch + 1)
    compiled(X)
    assert [*compiled.plans.values()] == plans


def check_follows(function, *changes) -> None:
    eager = layer(ic.FixedPoint(function))
    compiled = ic.compile(eager)
    for change in (lambda: None, *changes):
        before = eager(X)
        change()
        assert change not in changes or not torch.allclose(eager(X), before)
        torch.testing.assert_close(compiled(X), eager(X))
