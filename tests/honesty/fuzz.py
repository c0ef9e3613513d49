"""Random inputs and configurations, each with the seed that makes it again.

``python -m honesty.fuzz 10000`` tries so many of both.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

import implicitcore as ic
from honesty.finding import Case, Finding, examine
from honesty.fuzz_configs import config_call
from honesty.fuzz_values import FIELDS, MAPS, inputs_of, state, times_of
from implicitcore.registry.registry import REGISTRY
from implicitcore.tensors.shared import unwrapped

_CELLS = (MAPS["half"], MAPS["tanh"])
TOL = 1e-3
"""The tolerance of the solvers, where they have one."""


def inputs(count: int, seed: int = 0) -> Iterator[Finding]:
    """Throw random inputs at the functions and the layers.

    Arguments:
        count: how many.
        seed: of the first; finding i says ``seed/i``.
    """
    yield from _each(count, seed, _input)


def configs(count: int, seed: int = 0) -> Iterator[Finding]:
    """Throw random specifications and files at the readers of configurations."""
    yield from _each(count, seed, config_call)


def _each(count: int, seed: int, make: Callable[[random.Random], Case]) -> Iterator[Finding]:
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        torch.manual_seed(rng.getrandbits(31))
        found = examine(make(rng), f"{seed}/{index}")
        if found is not None:
            yield found


def _input(rng: random.Random) -> Case:
    return rng.choice((_fixed_point, _fixed_point, _find_root, _integrate, _integrate, _layer))(rng)


def _part(rng: random.Random, kind: str) -> Any:
    """A part of the kind, with a bound on its work; sometimes its name, or what is none."""
    if rng.random() < 0.1:
        return rng.choice((None, "anderson", {"name": "tsit5"}, 3, object(), "no such part", {}))
    cls = rng.choice(REGISTRY.parts(kind)).load()
    try:
        part = cls()
    except ic.ConfigError:  # it needs an option
        return None
    bounds = {"tol": TOL, "max_steps": 40}
    return cls(**{name: value for name, value in bounds.items() if hasattr(part, name)})


def _options(rng: random.Random, solver: str) -> dict[str, Any]:
    # Results are judged, and not what is said of them.
    options: dict[str, Any] = {"solver": _part(rng, solver), "on_failure": "ignore"}
    if rng.random() < 0.6:
        options["gradient"] = _part(rng, "gradient")
    if rng.random() < 0.15:
        options["coupled"] = True
    return options


def _fixed_point(rng: random.Random) -> Case:
    name = rng.choice(list(MAPS))
    z0, x, told = inputs_of(rng)
    f, options = MAPS[name], _options(rng, "root_solver")
    coupled = "coupled" in options
    call = lambda: _with_gradient(rng, lambda x: ic.fixed_point(f, z0, x, **options), x)  # noqa: E731
    return Case(
        f"fixed_point({name}, {told}, {_shown(options)})",
        call,
        lambda found: _residual_lie(found, lambda z: f(z, unwrapped(x)) - z, z0, coupled),
        lambda: f(_copy(z0), unwrapped(x)),
    )


def _find_root(rng: random.Random) -> Case:
    name = rng.choice(list(MAPS))
    z0, x, told = inputs_of(rng)
    options = _options(rng, "root_solver")
    coupled = "coupled" in options
    apart = name in ("row", "mean") and not coupled  # told by a gradient alone

    def g(z: Any, x: Any) -> Any:
        return MAPS[name](z, x) - z

    def at(z: Any) -> Any:
        return g(z, unwrapped(x))

    call = lambda: _with_gradient(rng, lambda x: ic.find_root(g, z0, x, **options), x)  # noqa: E731
    return Case(
        f"find_root({name}, {told}, {_shown(options)})",
        call,
        lambda found: (
            "" if apart else _residual_lie(found, lambda z: g(z, unwrapped(x)), z0, coupled)
        ),
        lambda: g(_copy(z0), unwrapped(x)),
    )


def _integrate(rng: random.Random) -> Case:
    name = rng.choice(list(FIELDS))
    z0, x, told = inputs_of(rng)
    times, options = times_of(rng), _options(rng, "ode_solver")
    if rng.random() < 0.2:
        options["dense"] = True
    if rng.random() < 0.2:
        options["event"] = rng.choice(
            (lambda t, z, x: z[:, 0] - 0.5, lambda t, z, x: z, lambda t, z, x: 0.0, 3)
        )
    v = FIELDS[name]
    call = lambda: _with_gradient(  # noqa: E731
        rng, lambda x: ic.integrate(v, z0, x, times=times, **options), x
    )
    exact = name == "decay" and "event" not in options

    def own() -> None:
        arguments = torch.zeros(()), _copy(z0), unwrapped(x)
        options.get("event", v)(*arguments)
        v(*arguments)

    return Case(
        f"integrate({name}, {told}, times={times!r}, {_shown(options)})",
        call,
        lambda found: _decay_lie(found, z0) if exact else "",
        own,
    )


def _layer(rng: random.Random) -> Case:
    part = rng.choice(REGISTRY.parts("layer"))
    x, told = state(rng)
    z0 = state(rng)[0] if rng.random() < 0.2 else None
    cell: Any = rng.choice(
        (MAPS["half"], MAPS["tanh"], torch.nn.Linear(3, 3), torch.nn.Linear, None)
    )

    def call() -> Any:
        layer = ic.build(part.name, cell)
        return layer.solve(x) if z0 is None else layer.solve(x, z0)

    told = f"build({part.name!r})({told}, {z0 is not None})"
    return Case(told, call, lambda found: "", lambda: cell(x if z0 is None else z0, unwrapped(x)))


def _copy(z: Any) -> Any:
    return z.detach().clone() if isinstance(z, torch.Tensor) else z


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={type(value).__name__}" for name, value in options.items())


def _with_gradient(rng: random.Random, solve: Callable[[Any], Any], x: Any) -> Any:
    """The solution, after a backward pass where x can have one."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point() and rng.random() < 0.5):
        return solve(x)
    leaf = x.detach().clone().requires_grad_()
    found = solve(leaf)
    if isinstance(found.z, torch.Tensor) and found.z.requires_grad:
        torch.autograd.grad(found.z.abs().sum(), leaf, allow_unused=True)
    return found


def _residual_lie(found: Any, g: Callable[[Any], Any], z0: Any, coupled: bool) -> str:
    """Whether a converged sample has a residual above its tolerance, measured here."""
    z = found.z
    if not isinstance(z0, torch.Tensor):
        return ""
    if z.shape != z0.shape or z.dtype != z0.dtype or found.status.shape != z.shape[:1]:
        return f"z of shape {list(z.shape)}, {z.dtype}; status of {list(found.status.shape)}"
    with torch.no_grad():
        wide, g_of_z = z.to(_wide(z)), g(z.clone()).to(_wide(z))
    samples = (1, -1) if coupled else (len(z), math.prod(z.shape[1:]))
    residual, size = (v.reshape(samples).norm(dim=1) for v in (g_of_z, wide + g_of_z))
    limit = size.clamp(min=1) * (1.05 * TOL + 50 * torch.finfo(z.dtype).eps)
    where = (found.converged & ~(residual <= limit)).nonzero().flatten().tolist()
    return f"samples {where} are above: {residual.tolist()}" if where else ""


def _decay_lie(found: Any, z0: Any) -> str:
    """Whether a converged sample of dz/dt = -z is wrong."""
    if not isinstance(z0, torch.Tensor) or not bool(found.converged.any()):
        return ""
    span = (found.times[-1] - found.times[0]).item()
    end = z0.to(_wide(z0)) * torch.exp(torch.tensor(-span, dtype=torch.float64))
    error = (found.z[-1].to(_wide(z0)) - end).reshape(len(z0), -1).abs()
    limit = 0.1 * end.abs().reshape(len(z0), -1) + 0.1 * z0.abs().reshape(len(z0), -1) + 1e-3
    wrong = (error > limit).any(1) & found.converged
    return f"samples {wrong.nonzero().flatten().tolist()} are wrong" if bool(wrong.any()) else ""


def _wide(z: torch.Tensor) -> torch.dtype:
    return torch.complex128 if z.is_complex() else torch.float64


def main() -> None:
    """Try so many of both, and print what is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    total = 0
    for name, generator in (("inputs", inputs), ("configs", configs)):
        for finding in generator(given.count, given.seed):
            total += 1
            print(name, finding, flush=True)
    print(f"{total} findings in {2 * given.count} cases")
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    main()
