# Options that are wrong on purpose are what these tests are about.
# pyright: reportArgumentType=false, reportCallIssue=false

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import Field
from torch import nn

from implicitcore import Anderson, ConfigError, Picard, PluginError, RootSolver, TorchBackend
from implicitcore.backends.base import Backend
from implicitcore.extend import Options
from implicitcore.options.options import options_of

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True, kw_only=True)
class Numbers(Options):
    tol: Annotated[float, Gt(0)] = 1e-4
    depth: Annotated[int, Field(ge=1, le=9)] = 5
    steps: Annotated[tuple[int, ...], MinLen(1)] = (1,)
    limit: Annotated[float, Interval(gt=0, lt=10)] | None = None
    either: int | tuple[int, ...] = 1
    mode: Literal["fast", "exact"] = "fast"
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Outer(Options):
    solver: RootSolver
    anderson: Anderson | None = None
    chain: tuple[RootSolver, ...] = ()
    backend: Backend | None = None
    norm: Callable[[Any], Any] | None = None
    net: nn.Module | None = None


def problems(cls: type, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        cls(**options)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("tol", -1.0, "expected a number greater than 0, received -1.0"),
        ("tol", math.nan, "expected a finite number, received nan"),
        ("tol", math.inf, "expected a finite number, received inf"),
        ("limit", math.inf, "expected a finite number, received inf"),
        ("tol", "1e-4", "expected a number, received '1e-4'"),
        ("tol", True, "expected a number, received True"),
        ("tol", None, "expected a number, received None"),
        ("tol", nn.Identity(), "expected a number, received an Identity object"),
        ("depth", 0, "expected a number greater than or equal to 1, received 0"),
        ("depth", 10, "expected a number less than or equal to 9, received 10"),
        ("depth", 2.5, "expected an integer, got a number with a fractional part, received 2.5"),
        ("depth", True, "expected an integer, received True"),
        ("limit", 10, "expected a number less than 10, received 10"),
        ("mode", "slow", "expected 'fast' or 'exact', received 'slow'"),
        ("either", "x", "expected an integer or expected a tuple, received 'x'"),
        ("strict", 3, "expected a boolean, unable to interpret input, received 3"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(option: str, value: Any, expected: str):
    assert problems(Numbers, **{option: value}) == [f"{option}: {expected}"]


def test_a_bad_item_is_named_by_its_place():
    assert problems(Numbers, steps=(1, 2.5)) == [
        "steps[1]: expected an integer, got a number with a fractional part, received 2.5"
    ]
    assert "at least 1 item" in problems(Numbers, steps=())[0]


def test_all_problems_come_in_one_error():
    assert [line.split(":")[0] for line in problems(Numbers, tol=0, depth=0, mode="x")] == [
        "tol",
        "depth",
        "mode",
    ]


def test_numbers_are_converted_where_nothing_is_lost():
    given: dict[str, Any] = {"tol": 1, "depth": np.int64(3), "steps": [1, 2]}
    options = Numbers(**given, limit=np.float32(0.5))
    assert options == Numbers(tol=1.0, depth=3, steps=(1, 2), limit=0.5)
    assert [
        type(value) for value in (options.tol, options.depth, options.steps, options.limit)
    ] == [float, int, tuple, float]
    assert hash(options) == hash(pickle.loads(pickle.dumps(options)))


def test_a_copy_is_checked_too():
    with pytest.raises(ConfigError):
        replace(Numbers(), tol=-1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("andersen", "unknown root_solver 'andersen'; did you mean 'anderson'"),
        ("tsit5", "'tsit5' is an ode_solver, not a root_solver"),
        ({"depth": 3}, "needs a 'name', the name of a registered root_solver"),
        (
            Anderson,
            "expected a root_solver object, received the class Anderson; call it: Anderson()",
        ),
        (TorchBackend(), "expected a root_solver, received a TorchBackend object"),
        (None, "expected a root_solver, received None"),
    ],
)
def test_a_slot_takes_objects_of_its_kind(value: Any, expected: str):
    [problem] = problems(Outer, solver=value)
    assert problem.startswith(f"solver: {expected}")


def test_a_slot_takes_names_and_mappings_as_a_config_does():
    outer = Outer(
        solver="picard",
        anderson={"name": "anderson", "depth": "3"},
        chain=["picard", Picard(tol=1.0)],
    )
    assert outer == Outer(
        solver=Picard(), anderson=Anderson(depth=3), chain=(Picard(), Picard(tol=1.0))
    )
    assert problems(Outer, solver={"name": "anderson", "toll": 1}, chain=["picard", "newto"])[
        0
    ] == (
        "solver.toll: unknown option of anderson; did you mean 'tol' or 'atol'? (options: atol, "
        "compact, damping, depth, history_dtype, max_steps, min_steps, plain_rate, "
        "regularization, tol)"
    )
    assert problems(Outer, solver="picard", chain=["picard", "newto"])[0].startswith(
        "chain[1]: unknown root_solver 'newto'; did you mean 'newton'?"
    )


def test_slots_may_be_optional_or_many_or_of_one_class():
    outer = Outer(solver=Picard(), chain=[Picard(), Anderson()])  # type: ignore[arg-type]
    assert outer.chain == (Picard(), Anderson())
    assert problems(Outer, solver=Picard(), anderson=Picard()) == [
        "anderson: expected an Anderson, received a Picard object"
    ]
    assert problems(Outer, solver=Picard(), chain=Picard()) == [
        "chain: expected a list of root_solver, received a Picard object"
    ]
    assert problems(Outer, solver=Picard(), chain=(Picard(), 3)) == [
        "chain[1]: expected a root_solver, received 3"
    ]
    slots = {name: option.slot for name, option in options_of(Outer).items()}
    assert (slots["norm"], slots["net"]) == (None, None)
    assert slots["backend"] is not None
    assert (slots["backend"].kinds, slots["backend"].optional) == (("backend",), True)


def test_modules_and_functions_are_checked_as_such():
    assert Outer(solver=Picard(), norm=abs, net=nn.Identity()).norm is abs
    assert problems(Outer, solver=Picard(), norm=3, net="os:system") == [
        "norm: expected callable, received 3",
        "net: expected an instance of Module, received 'os:system'",
    ]


def test_an_option_says_its_type_bounds_and_default():
    told = {
        name: (option.type_text, option.bounds_text) for name, option in options_of(Numbers).items()
    }
    assert told["tol"] == ("float", "> 0")
    assert told["depth"] == ("int", ">= 1, <= 9")
    assert told["limit"] == ("float | None", "> 0, < 10")
    assert told["mode"] == ("'fast' | 'exact'", "")
    assert options_of(Numbers)["depth"].default == 5
    assert options_of(Outer)["solver"].required
    assert options_of(Outer)["chain"].type_text == "list of root_solver"
    assert options_of(Outer)["norm"].type_text == "Callable[[Any], Any] | None"
    assert options_of(Outer)["net"].type_text == "Module | None"
    assert options_of(Outer)["anderson"].type_text == "root_solver or None"


class Base:
    def __init__(self, solver: RootSolver, *, needed: int, horizon: float = 1.0) -> None: ...


class Derived(Base):
    def __init__(
        self,
        cell: nn.Module,
        depth: Annotated[int, Ge(1)] = 2,
        *,
        root_solver: RootSolver,
        **options: Any,
    ) -> None: ...


def test_the_options_of_a_class_are_the_parameters_of_its_init():
    assert [(option.name, option.positional) for option in options_of(Base).values()] == [
        ("solver", True),
        ("needed", False),
        ("horizon", False),
    ]
    assert list(options_of(Derived)) == ["cell", "depth", "root_solver", "horizon"]
    slot = options_of(Derived)["root_solver"].slot
    assert slot is not None
    assert slot.kinds == ("root_solver",)


class Unresolved:
    def __init__(self, *, number: "Decimal") -> None: ...


def test_a_type_that_is_not_there_at_run_time_is_an_error():
    with pytest.raises(
        PluginError,
        match="Unresolved: name 'Decimal' is not defined, but the type of an option needs it",
    ):
        options_of(Unresolved)


class Unreadable:
    def __init__(
        self,
        *,
        number: "nn.NoSuchModule | None",  # pyright: ignore[reportAttributeAccessIssue]
    ) -> None: ...


def test_a_type_that_cannot_be_read_is_an_error_that_names_the_class():
    with pytest.raises(
        PluginError,
        match="Unreadable: the type of an option cannot be read: AttributeError: module 'torch.nn'",
    ):
        options_of(Unreadable)
