"""Fields of (z, x) and of (t, z, x) are told apart by what they can be called with."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.extend import takes_time

Z0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
FINE = ic.Dopri5(rtol=1e-9, atol=1e-12)
DECAY, GROWTH = (Z0 * torch.exp(torch.tensor(power, dtype=torch.float64)) for power in (-1.0, 0.5))


class Plain(nn.Module):
    def forward(self, z, x):
        return -z


class Timed(nn.Module):
    def forward(self, t, z, x):
        return t * z


class PassedOn(nn.Module):
    """As torch.nn.parallel.DistributedDataParallel."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments, **options):
        return self.module(*arguments, **options)


class Either(nn.Module):
    def forward(self, *arguments):
        return -arguments[-2]


def defaulted(t, z, x=None):
    return t * z


def weighted(rate, z, x):
    return rate * z


PLAIN = {
    "function": lambda z, x: -z,
    "module": Plain(),
    "default": lambda z, x=None: -z,
    "partial": partial(weighted, -1.0),
    "method": Plain().forward,
    "keyword": lambda z, x, *, rate=-1.0: rate * z,
    "option": lambda z, x, rate=-1.0: rate * z,
    "compiled": torch.compile(Plain(), backend="eager"),
    "passed on": PassedOn(torch.compile(Plain(), backend="eager")),
}
TIMED = {
    "function": lambda t, z, x: t * z,
    "module": Timed(),
    "default": defaulted,
    "time": lambda time, z, x=None: time * z,
    "method": Timed().forward,
    "option": lambda t, z, x=None, power=1: t**power * z,
    "compiled": torch.compile(Timed(), backend="eager"),
    "passed on": PassedOn(Timed()),
}


def test_what_the_signature_says():
    for field in PLAIN.values():
        assert not takes_time(field, otherwise=False)
    assert all(takes_time(field, otherwise=False) for field in TIMED.values())
    for field in (Either(), torch.add, lambda *arguments: arguments[0], lambda s, z, x=None: s * z):
        assert takes_time(field, otherwise=True)
        assert not takes_time(field, otherwise=False)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_torchscript_says():
    plain: list[Any] = [torch.jit.trace(Plain(), (Z0, Z0)), torch.jit.script(Plain())]
    timed: list[Any] = [torch.jit.trace(Timed(), (Z0, Z0, Z0)), torch.jit.script(Timed())]
    assert not any(takes_time(field, otherwise=True) for field in plain)
    assert all(takes_time(field, otherwise=False) for field in timed)
    for field, expected in ((plain[0], DECAY), (timed[0], GROWTH)):
        found = ic.integrate(field, Z0, times=[0.0, 1.0], solver=FINE).z[-1]
        assert torch.allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("name", PLAIN)
def test_a_field_without_time(name):
    found = ic.integrate(PLAIN[name], Z0, times=[0.0, 1.0], solver=FINE).z[-1]
    assert torch.allclose(found, DECAY, rtol=1e-7)
    for layer in ("neural_ode", "homoode"):
        more = {"channels": 2} if layer == "homoode" else {}
        built = ic.build(layer, PLAIN[name], ode_solver=FINE, **more)
        assert built.autonomous is True
        assert torch.allclose(built(Z0, Z0), DECAY, rtol=1e-7)


@pytest.mark.parametrize("name", TIMED)
def test_a_field_with_time(name):
    found = ic.integrate(TIMED[name], Z0, times=[0.0, 1.0], solver=FINE).z[-1]
    assert torch.allclose(found, GROWTH, rtol=1e-7)
    for layer in ("neural_ode", "homoode"):
        more = {"channels": 2} if layer == "homoode" else {}
        built = ic.build(layer, TIMED[name], ode_solver=FINE, **more)
        assert built.autonomous is False
        assert torch.allclose(built(Z0, Z0), GROWTH, rtol=1e-7)
        again = ic.build(built.config, TIMED[name])
        assert torch.equal(again(Z0, Z0), built(Z0, Z0))


def test_where_a_field_takes_either_a_function_gives_it_the_time_and_a_layer_does_not():
    seen = []

    class Watched(nn.Module):
        def forward(self, *arguments):
            seen.append(len(arguments))
            return -arguments[-2]

    ic.integrate(Watched(), Z0, times=[0.0, 1.0])
    assert set(seen) == {3}
    seen.clear()
    ic.build("neural_ode", Watched())(Z0)
    assert set(seen) == {2}
    seen.clear()
    ic.build("neural_ode", Watched(), autonomous=False)(Z0)
    assert set(seen) == {3}


def test_a_step_and_a_vector_field_follow_the_signature():
    now = ic.stepping(lambda z, x: -z, Z0, t=0.0, solver=ic.RK4(dt=1.0)).step(0.01)
    assert torch.allclose(now.z, Z0 * torch.exp(torch.tensor(-0.01)).double(), rtol=1e-7)
    assert ic.VectorField(lambda z, x: -z).autonomous is True
    field = ic.VectorField(lambda t, z, x: -z)
    assert field.autonomous is False
    field.field, field.autonomous = (lambda z, x: -z), None
    assert field.autonomous is True


@pytest.mark.parametrize(
    "solver", [ic.KenCarp4(rtol=1e-8, atol=1e-10), FINE], ids=["implicit-explicit", "explicit"]
)
def test_each_part_of_a_split_field_has_its_own_signature(solver):
    """dz/dt = -z + t, from 1: z = t - 1 + 2 exp(-t)."""
    parts = (lambda z, x: -z), (lambda t, z, x: t + 0 * z)
    z0, exact = torch.ones(2, 1, dtype=torch.float64), 2 * torch.exp(torch.tensor(-1.0)).double()
    for field in (ic.SplitField(*parts), ic.SplitField(*reversed(parts))):
        found = ic.integrate(field, z0, times=[0.0, 1.0], solver=solver).z[-1]
        assert torch.allclose(found, exact, rtol=1e-6)
        layer = ic.build("neural_ode", field, ode_solver=solver)
        assert torch.allclose(layer(z0), exact, rtol=1e-6)
    alone = ic.SplitField(*[lambda z, x: -z / 2] * 2)
    assert torch.allclose(
        ic.integrate(alone, Z0, times=[0.0, 1.0], solver=solver).z[-1], DECAY, rtol=1e-6
    )


@pytest.mark.parametrize("field", [lambda t, z: -z, lambda time, y: -y], ids=["t", "time"])
def test_time_and_state_alone_are_one_error(field):
    with pytest.raises(ic.InputError, match=r"called as f\(t, z, x\), and <lambda> takes \(t"):
        ic.integrate(field, Z0, times=[0.0, 1.0])
    with pytest.raises(ic.InputError, match=r"called as f\(t, z, x\), and <lambda> takes \(t"):
        ic.build("neural_ode", field)(Z0)
