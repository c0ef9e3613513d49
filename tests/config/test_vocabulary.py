"""One vocabulary of options, and what a call from Python that does not fit says."""

# Options that are wrong on purpose are what these tests are about.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import re
from typing import Any

import pytest
import torch
from support.trajectory_solvers import ADAPTIVE
from torch import nn

import implicitcore as ic
from implicitcore.options.docstrings import option_texts
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY

SHARED = {
    "root_solver": ("tol", "atol", "max_steps"),
    "ode_solver": ("max_steps", "first_step", "controller", "min_step", "max_step"),
}
KINDS = ("root_solver", "ode_solver", "gradient", "backend")
OURS = [
    part.load()
    for kind in KINDS
    for part in REGISTRY.parts(kind)
    if part.provider.startswith("implicitcore")
]
STARTS = [ic.Zeros, ic.Identity, ic.LearnedInitialGuess, ic.OneStep, ic.Predictor, ic.WarmStart]
CLASSES = [*OURS, *STARTS]


@pytest.mark.parametrize("kind", SHARED)
def test_a_shared_option_means_the_same_in_every_solver(kind):
    for name in SHARED[kind]:
        owners = [cls for cls in OURS if cls.kind == kind and name in options_of(cls)]
        own = [cls for cls in owners if cls.__module__.startswith("implicitcore.")]
        assert len(own) > 1
        assert len({option_texts(cls)[name] for cls in own}) == 1, name
        assert len({(options_of(cls)[name].type_text) for cls in owners}) == 1, name


@pytest.mark.parametrize("cls", ADAPTIVE)
@pytest.mark.parametrize("steady", [False, True])
def test_max_step_bounds_the_steps_of_every_adaptive_solver(cls, steady):
    longest = 0.03125
    z0 = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    seen: list[float] = []

    class Watched(cls):
        def step(self, system, t, dt, z, state):
            seen.append(dt.abs().max().item())
            return super().step(system, t, dt, z, state)

    Watched = dataclasses.dataclass(frozen=True, kw_only=True)(Watched)
    for bound, expected in ((None, False), (longest, True)):
        seen.clear()
        solver = Watched(rtol=1e-2, atol=1e-2, max_step=bound, max_steps=2000)
        if steady:
            root = ic.SteadyState(ode_solver=solver, tol=1e-2, max_steps=2000)
            solution = ic.fixed_point(lambda z, x: 0.5 * z + 1, z0, solver=root)
        else:
            times = torch.tensor([0.0, 1.0], dtype=torch.float64)
            solution = ic.integrate(lambda t, z, x: -z, z0, times=times, solver=solver)
        assert bool(solution.converged.all())
        assert (max(seen) <= longest) is expected


@pytest.mark.slow
@pytest.mark.parametrize("cls", ADAPTIVE)
def test_min_step_ends_a_sample_of_every_adaptive_solver(cls):
    z0 = torch.ones(1, 1, dtype=torch.float64)
    times = torch.tensor([0.0, 2.0], dtype=torch.float64)  # z' = z^2 ends at t = 1

    def solve(**options: Any) -> ic.Trajectory:
        solver = cls(rtol=1e-6, atol=1e-9, max_steps=5000, **options)
        return ic.integrate(
            lambda t, z, x: z * z, z0, times=times, solver=solver, on_failure="ignore"
        )

    bounded = solve(min_step=1e-3)
    assert bounded.status.tolist() == [ic.Status.DIVERGED]
    assert int(bounded.steps) < int(solve().steps)


@pytest.mark.parametrize("cls", ADAPTIVE)
def test_the_controller_of_every_adaptive_solver_is_the_one_asked_for(cls):
    for controller in ("i", "pi", "pid"):
        assert cls(controller=controller).step_size.controller == controller
    with pytest.raises(ic.ConfigError, match="controller: expected 'i', 'pi' or 'pid'"):
        cls(controller="p")


ROOT = [cls for cls in OURS if "max_steps" in options_of(cls) and cls.kind == "root_solver"]


@pytest.mark.parametrize("cls", ROOT)
@pytest.mark.parametrize("most", [1, 2, 5])
def test_max_steps_are_iterates_with_the_start_among_them(cls, most):
    z0 = torch.ones(3, 2, dtype=torch.float64)
    solver = cls(tol=1e-14, max_steps=most)
    solution = ic.fixed_point(lambda z, x: torch.cos(z), z0, solver=solver, on_failure="ignore")
    assert int(solution.steps.max()) <= most
    if most == 1:
        assert torch.equal(solution.z, z0)
        assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 3


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_option_is_an_error_that_lists_those_there_are(cls):
    known = options_of(cls)
    for name in known:
        misspelt = f"{name}x"
        with pytest.raises(ic.ConfigError) as caught:
            cls(**{misspelt: 1})
        line = caught.value.problems[0]
        assert line.startswith(f"{misspelt}: unknown option of {cls.__name__}; did you mean ")
        assert repr(name) in line.partition(" (options: ")[0]
    with pytest.raises(ic.ConfigError, match="unknown option of"):
        cls(no_such_option=1)


@pytest.mark.parametrize("word", ["step", "step_size", "shared_steps"])
def test_who_asks_for_one_step_size_is_told_which_option_it_is(word):
    for make in (
        lambda: ic.Tsit5(**{word: "shared"}),
        lambda: ic.create("ode_solver", "adams", **{word: "shared"}),
    ):
        with pytest.raises(
            ic.ConfigError, match=f"^1 problem:\n  {word}: unknown option"
        ) as caught:
            make()
        said = "one step size for all samples: norm=implicitcore.shared_error)"
        assert caught.value.problems[0].endswith(said)
    with pytest.raises(ic.ConfigError) as caught:
        ic.RK4(**{word: "shared"})
    assert "shared_error" not in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_too_many_positions_are_a_sentence(cls):
    extra = [object()] * (len(options_of(cls)) + 1)
    with pytest.raises(ic.ConfigError, match=f"{cls.__name__} takes (its options by name|no opt)"):
        cls(*extra)


@pytest.mark.parametrize("cls", OURS)
def test_no_option_is_infinite(cls):
    for name, option in options_of(cls).items():
        if not re.search(r"\bfloat\b", option.type_text):
            continue
        forms = [lambda value: value] if "float" in option.type_text.split(" | ") else []
        forms += [lambda value: (1.0, value)] if "tuple[float" in option.type_text else []
        assert forms
        for form, value in itertools.product(forms, (math.inf, -math.inf, math.nan)):
            said = rf"{name}(\[1\])?: expected a finite number"
            with pytest.raises(ic.ConfigError, match=said):
                cls(**{name: form(value)})
            with pytest.raises(ic.ConfigError, match=said):
                ic.create(cls.kind, REGISTRY.name_of(cls), **{name: form(value)})
        for form, text in itertools.product(forms, (".inf", "1e999", "nan")):
            with pytest.raises(ic.ConfigError, match=rf"{name}(\[1\])?: expected a"):
                ic.create(cls.kind, REGISTRY.name_of(cls), **{name: form(text)})


def test_yaml_has_no_infinite_option_either(tmp_path):
    file = tmp_path / "layer.yaml"
    file.write_text("name: deq\nroot_solver: {name: anderson, tol: .inf}\n")
    with pytest.raises(ic.ConfigError, match=r"root_solver.tol: expected a finite number"):
        ic.build(ic.load_config(file), lambda z, x: z)


def test_all_problems_of_a_call_come_in_one_error():
    with pytest.raises(ic.ConfigError) as caught:
        ic.Anderson(5, tolerance=1e-3, depth=0)
    assert caught.value.problems == (
        "Anderson takes its options by name, as in Anderson(tol=...); received 5 by position",
        "tolerance: unknown option of Anderson; did you mean 'tol'? (options: atol, compact, "
        "damping, depth, history_dtype, max_steps, min_steps, plain_rate, regularization, tol)",
        "depth: expected a number greater than or equal to 1, received 0",
    )
    with pytest.raises(ic.ConfigError, match="solver: given twice, by name and by position"):
        ic.Implicit(ic.GMRES(), solver=ic.GMRES())


def test_the_message_is_that_of_the_name():
    with pytest.raises(ic.ConfigError) as python:
        ic.ESDIRK(max_stepp=0.1)
    with pytest.raises(ic.ConfigError) as named:
        ic.create("ode_solver", "esdirk", max_stepp=0.1)
    [line] = named.value.problems
    assert python.value.problems == (line.replace("of esdirk", "of ESDIRK"),)


@pytest.mark.parametrize("cls", OURS)
def test_the_signature_is_that_of_the_options(cls):
    assert list(inspect.signature(cls).parameters) == list(options_of(cls))


class Cell(nn.Module):
    def forward(self, z, x):
        return 0.5 * torch.cos(z) + x


class OneInput(nn.Module):
    def forward(self, z):
        return z


X = torch.ones(2, 3, dtype=torch.float64)
TIMES = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_functions_take_names_and_mappings():
    def same(a: ic.SolveResult, b: ic.SolveResult) -> bool:
        return torch.equal(a.z, b.z) and a.evaluations == b.evaluations

    cell = Cell()
    root = lambda z, x: cell(z, x) - z  # noqa: E731
    field = lambda t, z, x: -z  # noqa: E731
    assert same(
        ic.find_root(root, X, X, solver="newton"), ic.find_root(root, X, X, solver=ic.Newton())
    )
    assert same(
        ic.integrate(field, X, times=TIMES, solver="dopri5"),
        ic.integrate(field, X, times=TIMES, solver=ic.Dopri5()),
    )
    phantom = {"name": "phantom", "steps": 3}
    named = ic.fixed_point(cell, X, X, solver={"name": "picard"}, gradient=phantom, backend="torch")
    assert same(named, ic.fixed_point(cell, X, X, solver=ic.Picard(), gradient=ic.Phantom(steps=3)))


def test_all_problems_of_the_parts_of_a_function_come_in_one_error():
    with pytest.raises(ic.ConfigError) as caught:
        ic.fixed_point(
            Cell(), X, X, solver="newto", gradient={"name": "phantom", "stps": 3}, backend=5
        )
    solver, gradient, backend = caught.value.problems
    assert solver.startswith("solver: unknown root_solver 'newto'; did you mean 'newton'?")
    assert gradient.startswith("gradient.stps: unknown option of phantom; did you mean 'steps'?")
    assert backend == "backend: expected a backend, received 5"
    with pytest.raises(ic.ConfigError, match="'newton' is a root_solver, not an ode_solver"):
        ic.integrate(lambda t, z, x: z, X, times=TIMES, solver="newton")
    with pytest.raises(ic.ConfigError, match=r"the class Anderson; call it: Anderson\(\)"):
        ic.fixed_point(Cell(), X, X, solver=ic.Anderson)  # type: ignore[arg-type]
    with pytest.raises(ic.GradientError, match=r"SteadyState\(Tsit5"):
        ic.fixed_point(Cell(), X, X, solver=ic.Tsit5())  # type: ignore[arg-type]


CALLS = {
    "fixed_point": lambda cell: ic.fixed_point(cell, X, X),
    "find_root": lambda cell: ic.find_root(cell, X, X),
    "layer": lambda cell: ic.ImplicitLayer(ic.FixedPoint(cell), solver="picard")(X),
    "deq": lambda cell: ic.build("deq", cell)(X),
    "neural_ode": lambda cell: ic.build("neural_ode", cell)(X),
    "homoode": lambda cell: ic.build("homoode", cell, channels=3)(X),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "received an nn.Sequential, which takes one input"),
        (Cell, r"received the class Cell; call it: Cell\(\.\.\.\)"),
        (3, r"expected (a module or function of \(z, x\)|callable), received 3"),
        (OneInput(), r"is called as f\(z, x\), and OneInput takes \(z\)"),
        (lambda z: z, r"is called as f\(z, x\), and <lambda> takes \(z\)"),
        (
            lambda z, x: (z, x),
            r"returned a tuple of 2 tensors, expected one tensor of shape \[2, 3\]",
        ),
    ],
    ids=["sequential", "class", "number", "module", "lambda", "tuple"],
)
def test_a_cell_that_cannot_be_used_is_a_sentence(call, cell, message):
    with pytest.raises((ic.ConfigError, ic.InputError), match=message):
        call(cell)


def test_a_type_error_of_the_cell_itself_stays_what_it_is():
    def broken(z, x):
        return z + "no number"

    with pytest.raises(TypeError, match="unsupported operand|must be Tensor"):
        ic.fixed_point(broken, X, X)
