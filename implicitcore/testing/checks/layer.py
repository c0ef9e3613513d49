"""What every layer promises."""

from __future__ import annotations

import copy
import functools
import io
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
from implicitcore.solution import Solution, SolveError
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close, expect_equal
from implicitcore.testing.factory import Maker
from implicitcore.testing.options import LIMITS, with_options
from implicitcore.testing.tensors import (
    copied,
    flat,
    parameters,
    require_grad,
    rows,
    slope,
    with_nan,
)

# Samples that are solved together may differ by rounding from those solved alone.
ALONE = 1e-7


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
def maps_an_empty_batch(maker: Maker) -> None:
    """No samples are no error."""
    z = flat(maker.make()(maker.inputs(0)))
    expect(len(z) == 0, "called the layer with no samples", f"shape {list(z.shape)}", "[0, ...]")


@contract("layer")
def solves_what_it_returns(maker: Maker) -> None:
    """``layer.solve(x)`` is a Solution with a status per sample, all converged, and its z is ``layer(x)``."""
    layer, x = maker.make(), maker.inputs()
    solution = layer.solve(copied(x))
    expect(
        isinstance(solution, Solution), "called layer.solve", type(solution).__name__, "a Solution"
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
def per_sample(maker: Maker) -> None:
    """A batch gives what its samples give alone."""
    layer, x = maker.make(), maker.inputs()
    together = flat(layer(x))
    for i in range(4):
        expect_close(
            together[i : i + 1],
            flat(layer(rows(x, [i]))),
            f"compared sample {i} of 4 with the same sample alone",
            ALONE,
        )


@contract("layer")
def reports_a_nan(maker: Maker) -> None:
    """A NaN in the input of one sample raises a SolveError.

    With ``on_failure="mask"`` that sample has a finite output.
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
def remembers_nothing(maker: Maker) -> None:
    """The same call gives the same answer, whatever was solved in between.

    And nothing new is left on the layer.
    """
    layer, x = maker.make(), maker.inputs()
    before, first = _kept(layer), flat(layer(copied(x)))
    layer(pytree.tree_map_only(Tensor, lambda leaf: leaf.flip(0), x))
    expect_equal(flat(layer(copied(x))), first, "called the layer again, after another call")
    changed = sorted(name for name, value in _kept(layer).items() if before.get(name) is not value)
    expect(
        not changed,
        "looked at the layer's attributes after three calls",
        f"new values of {', '.join(changed)}",
        "none",
    )


@contract("layer")
def no_input_mutation(maker: Maker) -> None:
    """X is not changed."""
    layer, x = maker.make(), maker.inputs()
    before = copied(x)
    layer(x)
    for found, expected in zip(pytree.tree_leaves(x), pytree.tree_leaves(before), strict=True):
        expect_equal(found, expected, "looked at x after the call")


@contract("layer")
def has_a_scalar_regularizer(maker: Maker) -> None:
    """``layer.regularizer(solution)`` is a finite scalar of z's dtype."""
    layer = maker.make()
    value = layer.regularizer(layer.solve(maker.inputs()))
    expect(
        isinstance(value, Tensor) and value.ndim == 0,
        "asked for the regularizer",
        value,
        "a scalar tensor",
    )
    expect(bool(value.isfinite()), "asked for the regularizer", value.item(), "a finite number")
    expect(
        value.dtype == torch.float64,
        "asked for the regularizer in float64",
        value.dtype,
        torch.float64,
    )


@contract("layer")
def teaches_every_parameter(maker: Maker) -> None:
    """Each parameter gets a gradient, from the output or from the regularizer."""
    layer = maker.make()
    _teach(layer, maker.inputs())
    lost = [
        name
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    expect(
        not lost,
        "went back from a loss with the regularizer",
        f"no gradient for {', '.join(lost)}",
        "one for each parameter",
    )


@contract("layer")
def trains_a_step(maker: Maker) -> None:
    """A small step against the gradient lowers the loss."""
    layer, x = maker.make(), maker.inputs()
    if not parameters(layer):
        raise NotApplicable("it has no parameters")
    before = _teach(layer, x)
    learned = [
        (parameter, parameter.grad) for parameter in parameters(layer) if parameter.grad is not None
    ]
    size = torch.stack([g.square().sum() for _, g in learned]).sum() if learned else torch.zeros(())
    expect(
        bool(size > 0) and bool(size.isfinite()),
        "summed the squares of the gradients",
        size.item(),
        "a positive number",
    )
    with torch.no_grad():
        for parameter, g in learned:
            parameter.sub_(g * (0.01 * before / size))
    after = _loss(layer, x).item()
    expect(
        after < before,
        "took a step that should lower the loss by 1 %",
        f"{before:.6g} before, {after:.6g} after",
        "a lower loss",
    )


@contract("layer")
def gives_the_gradient(maker: Maker) -> None:
    """At tight tolerances the derivatives by x and by the parameters agree with differences of the output."""
    layer = maker.exact()
    x, leaves = require_grad(maker.inputs())
    v = torch.randn_like(flat(layer(x)).detach())
    f = lambda: (flat(layer(x)) * v).sum()  # noqa: E731
    for did, wrt in (("x", leaves), ("the parameters", parameters(layer))):
        if not wrt:
            continue  # x is of integers, or nothing is learned
        found = torch.autograd.grad(f(), wrt, allow_unused=True)
        expect(
            any(g is not None for g in found),
            f"differentiated the output by {did}",
            "no gradient",
            "one",
        )
        by_autograd, by_difference = slope(f, wrt, 1e-4)
        close = abs(by_autograd - by_difference) <= 1e-3 * abs(by_difference)
        expect(
            close,
            f"compared the derivative by {did} with a difference",
            f"{by_autograd:.6g}",
            f"{by_difference:.6g}",
        )


@contract("layer")
def works_without_a_graph(maker: Maker) -> None:
    """In eval mode under no_grad it gives the same values, and no graph."""
    layer, x = maker.make(), maker.inputs()
    layer.eval()
    with torch.no_grad():
        z = layer(copied(x))
    with_graph = any(leaf.requires_grad for leaf in pytree.tree_leaves(z))
    expect(
        not with_graph,
        "called the layer under no_grad",
        "an output that requires a gradient",
        "none",
    )
    expect_close(
        flat(z),
        flat(layer(x)).detach(),
        "compared the output under no_grad with that with a graph",
        1e-12,
    )


@contract("layer")
def reloads_its_state(maker: Maker) -> None:
    """Another layer with its state_dict, saved and loaded as plain tensors, gives the same."""
    layer, twin, x = maker.make(), maker.make(seed=1), maker.inputs()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    expect_equal(
        flat(twin(copied(x))),
        flat(layer(copied(x))),
        "loaded the state_dict into a layer that was made with other weights",
    )


@contract("layer")
def copies(maker: Maker) -> None:
    """A deep copy gives the same, and shares no parameter."""
    layer, x = maker.make(), maker.inputs()
    first, twin = flat(layer(copied(x))), copy.deepcopy(layer)
    expect_equal(flat(twin(copied(x))), first, "copied the layer")
    shared = {id(parameter) for parameter in layer.parameters()} & {
        id(parameter) for parameter in twin.parameters()
    }
    expect(not shared, "copied the layer", f"{len(shared)} shared parameters", "none")


@contract("layer")
def round_trips_through_a_config(maker: Maker) -> None:
    """Where it is registered, its configuration is data that builds its equal.

    What is no data is given again.
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
    """What is assigned to an option is what solves and what the configuration says."""
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


def _loss(layer: Any, x: Any) -> Tensor:
    solution = layer.solve(x)
    return flat(solution.z).square().mean() + layer.regularizer(solution)


def _teach(layer: Any, x: Any) -> float:
    """The loss, with its gradient in every ``.grad``."""
    loss = _loss(layer, x)
    expect(
        loss.requires_grad,
        "asked for a loss of the output",
        "no graph",
        "one that leads to the parameters",
    )
    loss.backward()
    return loss.item()


def _kept(layer: nn.Module) -> dict[str, Any]:
    """Every attribute of the layer and of its modules."""
    hidden = ("_parameters", "_buffers", "_modules")
    own = [(name, module, vars(module)) for name, module in layer.named_modules()]
    attributes = {
        f"{name}.{key}".strip("."): value
        for name, _, values in own
        for key, value in values.items()
        if key not in hidden
    }
    buffers = {f"{name} (buffer)": value for name, value in layer.named_buffers()}
    return {**attributes, **buffers}
