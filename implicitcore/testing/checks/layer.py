"""What every layer promises for what it returns."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.config.build import build, describe
from implicitcore.errors import ConfigError, UnknownPartError
from implicitcore.layers.base import ImplicitLayer
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY
from implicitcore.solution import FinalState, Solution, SolveError
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close, expect_equal
from implicitcore.testing.factory import Maker
from implicitcore.testing.options import LIMITS, with_options
from implicitcore.testing.tensors import (
    copied,
    flat,
    with_nan,
)


@contract("layer")
def maps_a_batch(maker: Maker) -> None:
    """``layer(x)`` has the batch first, x's dtype and finite values, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        z = maker.make(dtype)(maker.inputs(3, dtype))
        for leaf in pytree.tree_leaves(z):
            did = f"called the layer with 3 samples in {dtype}"
            expect(isinstance(leaf, Tensor), did, type(leaf).__name__, "a tensor")
            expect(leaf.shape[:1] == (3,), did, f"shape {list(leaf.shape)}", "[3, ...]")
            expect(leaf.dtype == dtype, did, leaf.dtype, dtype)
            expect(bool(leaf.isfinite().all()), did, "values that are not finite", "finite ones")


@contract("layer")
def solves_what_it_returns(maker: Maker) -> None:
    """``layer.solve(x)`` has a status per sample, all converged, and z is ``layer(x)``.

    It is a Solution, or with an ODE solver a FinalState.
    """
    layer, x = maker.make(), maker.inputs()
    solution = layer.solve(copied(x))
    expect(
        isinstance(solution, Solution | FinalState),
        "called layer.solve",
        type(solution).__name__,
        "a Solution or a FinalState",
    )
    expect(
        list(solution.status.shape) == [4],
        "solved 4 samples",
        f"a status of shape {list(solution.status.shape)}",
        [4],
    )
    expect(bool(solution.converged.all()), "solved 4 samples", solution.summary(), "all converged")
    expect_close(
        flat(layer(copied(x))), flat(solution.z), "compared layer(x) with layer.solve(x).z", 1e-6
    )


@contract("layer")
def reports_nan(maker: Maker) -> None:
    """A NaN in the input of one sample is an error or a status, and never a converged result.

    It raises a SolveError; with ``on_failure="mask"`` the sample has a finite output.
    """
    layer, x = maker.make(), with_nan(maker.inputs(), 1)
    try:
        z = flat(layer(x))
    except SolveError:
        return
    masked = getattr(layer, "on_failure", None) == "mask" and bool(z.isfinite().all())
    expect(
        masked, "called the layer with a NaN in sample 1", "an output and no error", "a SolveError"
    )


@contract("layer")
def no_hidden_state(maker: Maker) -> None:
    """A call leaves no new value in any attribute or buffer."""
    layer, x = maker.make(), maker.inputs()
    before = _attributes(layer)
    layer(copied(x))
    layer(pytree.tree_map_only(Tensor, lambda leaf: leaf.flip(0), x))
    after = _attributes(layer)
    changed = sorted(name for name, value in after.items() if before.get(name) is not value)
    expect(
        not changed,
        "looked at the layer's attributes after two calls",
        f"new values of {', '.join(changed)}",
        "none",
    )


@contract("layer")
def config_round_trip(maker: Maker) -> None:
    """The configuration of a registered part is data, and builds its equal.

    What is not data (a predictor) is passed again.
    """
    layer = maker.make()
    try:
        REGISTRY.find_class(type(layer))
    except UnknownPartError as error:
        raise NotApplicable(str(error)) from error
    config = json.loads(json.dumps(layer.config))
    keywords = maker.factory.keywords if isinstance(maker.factory, functools.partial) else {}
    objects = {name: copy.deepcopy(value) for name, value in keywords.items() if name not in config}
    twin = build(config, *maker.cell(), **objects).to(torch.float64)
    expect(twin.config == layer.config, "built a layer from the config", twin.config, layer.config)
    twin.load_state_dict(layer.state_dict())
    x = maker.inputs()
    expect_equal(
        flat(twin(copied(x))),
        flat(layer(copied(x))),
        "built a layer from the config, and loaded the state_dict",
    )


@contract("layer")
def follows_its_options(maker: Maker) -> None:
    """A value assigned to an option is the one that solves and the one in the configuration."""
    layer = maker.make()
    if not isinstance(layer, ImplicitLayer):
        raise NotApplicable("it is no ImplicitLayer")
    try:
        before = layer.config
    except ConfigError as error:
        raise NotApplicable(str(error)) from error
    solver = with_options(layer.solver, **{name: _one_more for name in LIMITS})
    names = [name for name in options_of(type(layer)) if getattr(layer, name) is layer.solver]
    for name in {"solver", *names}:
        layer = maker.make()
        setattr(layer, name, solver)
        expect(layer.solver == solver, f"assigned another {name}", layer.solver, solver)
        expect(layer.config != before, f"assigned another {name}", "the same config", "its options")
        for alias in names:
            told = layer.config[alias]
            expect(told == describe(solver), f"assigned {name}, read config", told, solver)
    try:
        layer.on_failure = "no such choice"
    except ConfigError:
        return
    expect(False, "assigned an on_failure that there is not", "no error", "a ConfigError")


def _one_more(limit: int) -> int:
    return limit + 1


def _attributes(layer: nn.Module) -> dict[str, Any]:
    """Every attribute and buffer of the layer and of its modules, by a path."""
    found = {f"{name} (buffer)": value for name, value in layer.named_buffers()}
    for name, module in layer.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                found[f"{name}.{key}".strip(".")] = value
    return found
