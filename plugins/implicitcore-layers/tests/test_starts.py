"""Where the flows begin: Neural ODEs at x, at zero or learned; HomoODE's learned start."""

# Options that are wrong on purpose are among these.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import implicitcore as ic

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EXACT = ic.Tsit5(rtol=1e-10, atol=1e-12)


def rise(z, x):
    """From z0 the exact flow to time 1 is x + (z0 - x) / e."""
    return x - z


@pytest.mark.parametrize(
    ("start", "z0"),
    [
        (None, X),
        ("identity", X),
        (ic.Identity(), X),
        ("zeros", torch.zeros_like(X)),
        ({"name": "zeros"}, torch.zeros_like(X)),
        (ic.Zeros(), torch.zeros_like(X)),
        ({"name": "learned", "channels": 4}, torch.tensor([-1.0, 1, -1, 1]).double()),
        ({"name": "learned", "channels": 4, "init": 0.5}, torch.tensor(0.5).double()),
        ({"name": "learned", "channels": 2, "shape": [2, 2], "init": [3, -2]}, None),
    ],
)
def test_a_neural_ode_begins_where_it_is_told(start, z0):
    layer = ic.build("neural_ode", rise, start=start, ode_solver=EXACT).double()
    if z0 is None:
        layer.cell = lambda z, x: x.reshape(z.shape) - z
        z0 = torch.tensor([3.0, 3, -2, -2]).double()
    expected = X + (z0 - X) / torch.e
    torch.testing.assert_close(layer(X).flatten(1), expected, rtol=1e-8, atol=1e-8)
    twin = ic.build(layer.config, layer.cell).double()
    assert twin.config == layer.config
    assert torch.equal(twin(X), layer(X))


def test_the_learned_start_of_a_neural_ode_is_told_apart_in_the_parameter_groups():
    layer = ic.build("neural_ode", nn.Bilinear(4, 4, 4), start={"name": "learned", "channels": 4})
    groups = {group["role"]: group["params"] for group in layer.parameter_groups()}
    assert [value.shape for value in groups["start"]] == [(4,)]
    assert len(groups["dynamics"]) == 2


def test_an_assigned_start_is_what_solves_and_what_the_config_says():
    layer = ic.build("neural_ode", rise)
    layer.start = "zeros"
    assert layer.config == ic.build("neural_ode", rise, start="zeros").config
    assert torch.equal(layer(X), ic.build("neural_ode", rise, start="zeros")(X))
    with pytest.raises(ic.ConfigError, match="unknown start 'zero'; did you mean 'zeros'"):
        layer.start = "zero"


def test_a_config_cannot_say_a_function():
    layer = ic.build("neural_ode", rise, start=ic.Predictor(lambda x: 2 * x))
    assert torch.allclose(layer(X), X + X / torch.e, atol=1e-2)
    with pytest.raises(ic.ConfigError, match="start.predictor: .* cannot be written"):
        _ = layer.config


@pytest.mark.parametrize("gradient", ["adjoint", "unrolled", "checkpointed"])
def test_an_augmented_neural_ode_adds_channels_of_zeros(gradient):
    torch.manual_seed(0)
    mix = nn.Linear(6, 6).double()
    layer = ic.build(
        "augmented_neural_ode",
        lambda z, x: torch.tanh(mix(z)),
        extra=2,
        gradient=gradient,
        ode_solver=EXACT,
    )
    x = X.clone().requires_grad_()
    z = layer(x)
    begin = torch.cat((x, torch.zeros(3, 2, dtype=torch.float64)), 1)
    twin = ic.build("neural_ode", lambda z, x: torch.tanh(mix(z)), ode_solver=EXACT)
    twin.gradient = "unrolled"
    torch.testing.assert_close(z, twin(begin))
    wrt = [x, mix.weight, mix.bias]
    found = torch.autograd.grad(z.pow(3).sum(), wrt)
    expected = torch.autograd.grad(twin(begin).pow(3).sum(), wrt)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    assert layer.config["extra"] == 2
    layer.extra = 1
    assert layer.config["extra"] == 1


def test_added_channels_let_trajectories_pass_each_other():
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)

    def field(z, x):
        return torch.cat((-2 * x, x), 1)

    z = ic.build("augmented_neural_ode", field, extra=1, ode_solver=EXACT)(x)
    torch.testing.assert_close(z[:, :1], -x)


def test_added_channels_need_channels():
    layer = ic.build("augmented_neural_ode", rise, extra=1)
    with pytest.raises(ic.InputError, match=r"cannot add channels to an x of shape \[3\]"):
        layer(torch.zeros(3))


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("signs", [-1.0, 1.0, -1.0, 1.0]),
        (0.0, [0.0] * 4),
        (2, [2.0] * 4),
        ((0.1, 0.2, 0.3, 0.4), [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_homoode_begins_where_it_is_told(init, expected):
    layer = ic.build("homoode", rise, channels=4, init=init)
    assert layer.get_parameter("start.value").tolist() == pytest.approx(expected)
    twin = ic.build(layer.config, rise)
    assert twin.config == layer.config
    assert torch.equal(twin.get_parameter("start.value"), layer.get_parameter("start.value"))


def test_the_default_start_of_homoode_is_at_one_in_size():
    layer = ic.build("homoode", rise, channels=5)
    assert layer.get_parameter("start.value").tolist() == [-1, 1, -1, 1, -1]
    drawn = ic.build("homoode", rise, channels=500, init="normal").get_parameter("start.value")
    assert 0.8 < drawn.std().item() < 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4, "init": (1.0, 2.0)}, "init: expected 4 values, received 2"),
        ({"channels": 4, "init": "sign"}, "init: expected 'signs' or 'normal'"),
        ({"channels": 0}, "channels: expected"),
    ],
)
def test_a_start_that_does_not_fit_is_told(options: dict[str, Any], message):
    with pytest.raises(ic.ConfigError, match=message):
        ic.build("homoode", rise, **options)
    start = {"name": "learned", **options}
    with pytest.raises(ic.ConfigError, match=message):
        ic.build("neural_ode", rise, start=start)


def test_a_learned_start_of_a_pyramid_has_values_for_each_image():
    start = ic.LearnedInitialGuess((2, 3), ((2, 4, 4), (3, 2, 2)))
    a, b = start(torch.zeros(5, 1))
    assert a.shape == (5, 2, 4, 4)
    assert b.shape == (5, 3, 2, 2)
    assert a[0, :, 0, 0].tolist() == [-1, 1]
    assert b[0, :, 1, 1].tolist() == [-1, 1, -1]
    for wrong in (((2, 4, 4), (2, 2, 2)), ((2, 4, 4),), ((2, 4), (3, 2), (1, 2))):
        with pytest.raises(ic.InputError, match="learned initial guess has .* channels"):
            ic.LearnedInitialGuess((2, 3), wrong)(torch.zeros(5, 1))
