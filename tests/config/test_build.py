import json
import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pluggy
import pytest
import torch
from annotated_types import Ge
from torch import nn

import implicitcore as ic
from implicitcore.config import build as config
from implicitcore.config.auto_backend import candidates, choose
from implicitcore.extend import Options
from implicitcore.registry.registry import Registry


class Toy(ic.ImplicitLayer):
    """A layer with every sort of option."""

    def __init__(
        self,
        cell: nn.Module,
        *,
        root_solver: ic.RootSolver = ic.Anderson(),
        weight: Annotated[float, Ge(0)] = 0.01,
        mode: Literal["mean", "sum"] = "mean",
        predictor: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(ic.FixedPoint(cell), solver=root_solver, **options)
        self.root_solver, self.weight, self.mode, self.predictor = (
            root_solver,
            weight,
            mode,
            predictor,
        )


@dataclass(frozen=True, kw_only=True)
class Chain(Options, ic.RootSolver):
    solvers: tuple[ic.RootSolver, ...] = (ic.Picard(),)
    norm: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.solvers) > 3:
            raise ic.ConfigError(["solvers: at most three"])

    def solve(self, system, z0):
        return self.solvers[0].solve(system, z0)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, z, x):
        return torch.tanh(0.3 * self.linear(z) + x)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    registry.register("layer", "toy", Toy, summary="a toy")
    registry.register("root_solver", "sequence", Chain, summary="one after the other")
    monkeypatch.setattr(config, "REGISTRY", registry)
    return registry


def problems(*spec: Any, **options: Any) -> list[str]:
    with pytest.raises(ic.ConfigError) as caught:
        ic.build(*spec, **options)
    return list(caught.value.problems)


def test_names_mappings_and_objects_build_the_same_layer():
    cell = Cell()
    by_name = ic.build(
        "toy",
        cell,
        root_solver="picard",
        gradient={"name": "implicit", "solver": {"name": "gmres", "tol": "1e-5"}},
    )
    implicit = {"name": "implicit", "solver": ic.GMRES(tol=1e-5)}
    by_mapping = ic.build(
        {"name": "toy", "root_solver": {"name": "picard"}, "gradient": implicit}, cell
    )
    by_object = ic.build(
        "toy", cell, root_solver=ic.Picard(), gradient=ic.Implicit(ic.GMRES(tol=1e-5))
    )
    assert by_name.config == by_mapping.config == by_object.config
    assert by_name.solver == ic.Picard()
    assert by_name.gradient == ic.Implicit(ic.GMRES(tol=1e-5))
    assert by_name.dynamics.cell is cell


def test_the_public_example_builds():
    layer = ic.build(
        "toy",
        Cell(),
        root_solver={"name": "steady_state", "ode_solver": "tsit5", "tol": 1e-4, "max_steps": 50},
        gradient={"name": "implicit", "solver": {"name": "gmres", "tol": 1e-4}},
        backend="auto",
    )
    assert layer.solver == ic.SteadyState(ode_solver=ic.Tsit5(), tol=1e-4, max_steps=50)
    assert type(layer.backend) is type(ic.create("backend", "auto"))


def test_all_problems_come_in_one_error_with_their_paths():
    found = problems(
        "toy",
        Cell(),
        root_solver={"name": "anderson", "toll": 1e-3, "depth": 0, "tol": "much"},
        gradient={"name": "implicit", "solver": {"name": "gmress"}},
        weight=-1,
        mode="max",
        wieght=3,
    )
    by_path = dict(line.split(": ", 1) for line in found)
    assert by_path["root_solver.toll"].startswith("unknown option of anderson; did you mean 'tol'")
    assert "(options: atol, " in by_path["root_solver.toll"]
    assert (
        by_path["root_solver.depth"] == "expected a number greater than or equal to 1, received 0"
    )
    assert by_path["root_solver.tol"] == "expected a number, received 'much'"
    assert by_path["gradient.solver"].startswith(
        "unknown root_solver 'gmress'; did you mean 'gmres'"
    )
    assert by_path["weight"] == "expected a number greater than or equal to 0, received -1"
    assert by_path["mode"] == "expected 'mean' or 'sum', received 'max'"
    assert by_path["wieght"].startswith("unknown option of toy; did you mean 'weight'")
    assert len(found) == 7


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("tooy", "unknown layer 'tooy'; did you mean 'toy'"),
        ("anderson", "'anderson' is a root_solver, not a layer"),
        ({"weight": 1}, "needs a 'name', the name of a registered layer; received None"),
        (3, "expected a layer, received 3"),
        (Toy, "expected a layer object, received the class Toy; call it: Toy()"),
        ("os:system", "unknown layer 'os:system'"),
        ("torch.nn.Linear", "unknown layer 'torch.nn.Linear'"),
        (
            {"name": "toy", "cell": "torch.nn:Linear"},
            "cell: given to toy twice, by name and by position",
        ),
        (
            {"name": "toy", "predictor": "torch.nn:Linear"},
            "predictor: expected an instance of Module, received 'torch.nn:Linear'",
        ),
        (
            {"name": "toy", "root_solver": None},
            "root_solver: expected a root_solver, received None",
        ),
        ({"name": "toy", "root_solver": 3}, "root_solver: expected a root_solver, received 3"),
        (
            {"name": "toy", "root_solver": "tsit5"},
            "root_solver: 'tsit5' is an ode_solver, not a root_solver",
        ),
        (
            {"name": "toy", "root_solver": ic.Implicit()},
            "root_solver: expected a root_solver, received an Implicit object",
        ),
        (
            {"name": "toy", "root_solver": {"name": "sequence", "solvers": "picard"}},
            "root_solver.solvers: expected a list of root_solver",
        ),
        (
            {
                "name": "toy",
                "root_solver": {
                    "name": "sequence",
                    "solvers": ["picard", {"name": "picard", "tol": -1}],
                },
            },
            "root_solver.solvers[1].tol: expected a number greater than or equal to 0",
        ),
        (
            {"name": "toy", "root_solver": {"name": "sequence", "solvers": ["picard"] * 4}},
            "root_solver.solvers: at most three",
        ),
        ({"name": "toy", "weight": True}, "weight: expected a number, received True"),
        ({"name": "toy", True: 1}, "True: unknown option of toy"),
    ],
)
def test_a_bad_specification_is_refused(spec: Any, expected: str):
    found = problems(spec, *([Cell()] if spec not in (3, Toy) else []))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_an_import_path_is_said_to_be_none():
    assert "never an import path" in problems("os:system", Cell())[0]
    assert "never an import path" not in problems("tooy", Cell())[0]


def test_a_missing_or_impossible_cell_is_one_clear_problem():
    assert problems("toy") == ["cell: required by toy: Module"]
    assert problems("toy", 3) == ["cell: expected an instance of Module, received 3"]
    assert problems({"name": "toy", "cell": "os:system"}) == [
        "cell: expected an instance of Module, received 'os:system'"
    ]
    with pytest.raises(ic.ConfigError, match="implicit takes 0 positional arguments, received 1"):
        ic.create("gradient", "implicit", ic.GMRES())


def test_what_only_python_can_give_is_given_by_keyword():
    predictor = nn.Linear(3, 3)
    layer = ic.build({"name": "toy", "weight": 1}, Cell(), predictor=predictor, weight=2)
    assert layer.predictor is predictor
    assert layer.weight == 2.0


class Skip(ic.ImplicitLayer):
    def __init__(
        self,
        cell: nn.Module,
        predictor: nn.Module,
        /,
        channels: int,
        *,
        solver: ic.RootSolver = ic.Anderson(),
    ) -> None:
        super().__init__(ic.FixedPoint(cell), solver=solver, start=ic.Predictor(predictor))
        self.channels = channels


def test_arguments_by_position_may_be_given_by_name(registry: Registry):
    registry.register("layer", "skip", Skip)
    cell = Cell()
    layer = ic.build({"name": "skip", "channels": "4"}, cell, predictor=cell)
    assert layer.config["channels"] == 4
    assert set(layer.config) == {"name", "channels", "solver"}
    assert ic.build(layer.config, cell, predictor=cell).config == layer.config
    assert ic.create("layer", "skip", cell, cell, 4).config == layer.config
    assert problems("skip") == [
        "cell: required by skip: Module",
        "predictor: required by skip: Module",
        "channels: required by skip: int",
    ]


def test_an_object_takes_no_options():
    layer = ic.build("toy", Cell())
    assert ic.build(layer) is layer
    assert problems(layer, Cell())[0].startswith(
        "options and arguments go with a name, not with a Toy object"
    )
    with pytest.raises(ic.ConfigError, match="options and arguments go with a name"):
        ic.create("root_solver", ic.Picard(), tol=1e-3)


def test_create_makes_parts_of_every_kind():
    cell = Cell()
    assert ic.create("root_solver", {"name": "anderson", "depth": 3}, tol=1) == ic.Anderson(
        depth=3, tol=1.0
    )
    assert ic.create("ode_solver", "rk4") == ic.RK4()
    assert ic.create("gradient", "phantom", steps=2) == ic.Phantom(steps=2)
    assert ic.create("dynamics", "fixed_point", cell).cell is cell
    assert ic.create("backend", "auto").unready_reason() is None
    with pytest.raises(ic.ConfigError, match=r"solver\.toll: unknown option of picard"):
        ic.create("root_solver", {"name": "picard", "toll": 1}, path="solver")
    with pytest.raises(ic.UnknownPartError, match="unknown kind 'command'"):
        ic.create("command", "train")


def test_trouble_with_the_provider_is_an_error_of_its_own(registry: Registry):
    registry.register("root_solver", "anderson", ic.Picard)
    registry.register("root_solver", "gone", "no_such_module:X")
    with pytest.raises(
        ic.AmbiguousPartError,
        match="^root_solver: root_solver 'anderson' is provided by 2 distributions",
    ):
        ic.build("toy", Cell(), root_solver="anderson")
    with pytest.raises(
        ic.PluginError, match="^root_solver: root_solver 'gone' of local cannot be imported"
    ):
        ic.build("toy", Cell(), root_solver={"name": "gone"})
    assert ic.build("toy", Cell(), root_solver="implicitcore:anderson").solver == ic.Anderson()
    assert ic.build("toy", Cell(), root_solver="local:anderson").solver == ic.Picard()


def test_trouble_with_the_provider_is_listed_with_all_else(registry: Registry):
    registry.register("root_solver", "anderson", ic.Picard)
    registry.register("gradient", "gone", "no_such_module:X")
    found = problems("toy", Cell(), root_solver="anderson", gradient="gone", wieght=3)
    assert [line.split(":")[0] for line in found] == ["root_solver", "gradient", "wieght"]
    assert "say which: 'implicitcore:anderson'" in found[0]
    assert "cannot be imported: ModuleNotFoundError" in found[1]


class Unavailable(ic.TorchBackend):  # type: ignore[misc]
    def unavailable_reason(self) -> str | None:
        return "no device"


def test_auto_passes_over_backends_that_cannot_run(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("IMPLICITCORE_DISABLE_PLUGINS", "all")
    registry.register("backend", "absent", Unavailable)
    assert type(ic.create("backend", "auto")) is ic.TorchBackend
    registry.register("backend", "gone", "no_such_module:X")
    with pytest.warns(ic.PluginWarning, match="backend 'auto' passed over backend 'gone'"):
        assert type(ic.create("backend", "auto")) is ic.TorchBackend


class OnDevices(ic.TorchBackend):  # type: ignore[misc]
    device_types = ("cuda",)


class OnBoth(ic.TorchBackend):  # type: ignore[misc]
    device_types = ("cpu", "cuda")


def test_auto_passes_over_backends_for_accelerators_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("IMPLICITCORE_DISABLE_PLUGINS", "all")
    registry.register("backend", "a_device", OnDevices)
    with warnings.catch_warnings(action="error"):  # nothing is wrong with it
        assert type(ic.create("backend", "auto")) is ic.TorchBackend
    assert type(ic.create("backend", "a_device")) is OnDevices
    registry.register("backend", "both", OnBoth)
    assert type(ic.create("backend", "auto")) is OnBoth


class Faulty(ic.TorchBackend):  # type: ignore[misc]
    def unavailable_reason(self) -> str | None:
        raise OSError("libcuda.so.1: cannot open shared object file")


def test_auto_passes_over_backends_that_raise_and_asks_the_core_last(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("IMPLICITCORE_DISABLE_PLUGINS", "all")
    registry.register("backend", "faulty", Faulty)
    registry.register("backend", "torch", ic.TorchBackend)
    with pytest.warns(
        ic.PluginWarning, match="passed over backend 'faulty' of local: OSError: libcuda"
    ):
        ic.create("backend", "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ic.PluginWarning)
        order = [
            name
            for candidate in candidates(registry)
            if "torch" in (name := candidate.part.qualified_name) or "faulty" in name
        ]
        assert choose(candidates(registry)).part.qualified_name == "local:torch"
    assert order == ["local:faulty", "local:torch", "implicitcore:torch"]
    with (
        pytest.warns(ic.PluginWarning),
        pytest.raises(ic.ConfigError, match="layers: unknown option of auto"),
    ):
        ic.create("backend", {"name": "auto", "layers": 3})
    with pytest.raises(ic.PluginError, match="no backend can run here"):
        choose([])


def test_a_configuration_is_read_without_a_cell():
    prepared = config.prepare(
        "layer", {"name": "toy", "weight": "1e-2", "root_solver": {"name": "picard", "tol": 1e-7}}
    )
    assert prepared.func is Toy
    assert prepared.keywords == {"weight": 0.01, "root_solver": ic.Picard(tol=1e-7)}
    data = ic.describe(prepared)
    cell = Cell()
    assert ic.build(data, cell).config == prepared(cell).config
    assert (data["weight"], data["mode"], data["root_solver"]["damping"]) == (0.01, "mean", 1.0)
    assert "cell" not in data


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"name": "toy", "cell": "torch.nn:Linear"},
            ["cell: given to toy from Python, not by a configuration"],
        ),
        (
            {"name": "toy", "weight": -1, "wieght": 1},
            ["weight: expected a number greater", "wieght: unknown option of toy; did you mean"],
        ),
        (
            {"name": "toy", "root_solver": "andersen"},
            ["root_solver: unknown root_solver 'andersen'; did you mean 'anderson'"],
        ),
        ("skip", ["channels: required by skip: int"]),
        (3, ["expected the name of a layer or a mapping with it, received 3"]),
        ({"weight": 1}, ["needs a 'name', the name of a registered layer"]),
    ],
)
def test_a_bad_configuration_is_refused_without_a_cell(
    registry: Registry, spec: Any, expected: list[str]
):
    registry.register("layer", "skip", Skip)
    with pytest.raises(ic.ConfigError) as caught:
        config.prepare("layer", spec)
    for problem, beginning in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(beginning)


def test_names_end_at_this_edge(monkeypatch: pytest.MonkeyPatch):
    layer = ic.build("toy", Cell(), root_solver={"name": "anderson", "tol": 1e-5})

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a hook was called")

    x = torch.ones(2, 3, requires_grad=True)
    with monkeypatch.context() as patch:  # pytest itself calls hooks outside
        patch.setattr(pluggy.HookCaller, "__call__", refuse)
        patch.setattr(Registry, "find", refuse)
        layer(x).sum().backward()
    assert x.grad is not None


def test_a_layer_is_rebuilt_from_its_config():
    cell = Cell()
    options: dict[str, Any] = {
        "root_solver": {
            "name": "sequence",
            "solvers": ["anderson", {"name": "picard", "tol": 1e-7}],
        },
        "gradient": {"name": "implicit", "solver": "gmres"},
    }
    layer = ic.build(
        "toy",
        cell,
        weight=0.5,
        mode="sum",
        predictor=nn.Identity(),
        horizon=2,
        on_failure="raise",
        **options,
    )
    data = layer.config
    again = ic.build(json.loads(json.dumps(data)), cell)
    assert again.config == data
    assert again.root_solver == layer.root_solver
    assert (again.weight, again.mode, again.horizon, again.on_failure) == (0.5, "sum", 2.0, "raise")
    assert data["name"] == "toy"
    assert data["backend"] == "torch"
    assert data["root_solver"]["solvers"][1]["tol"] == 1e-7
    assert data["gradient"]["solver"]["name"] == "gmres"
    assert "predictor" not in data
    assert "cell" not in data


@pytest.mark.parametrize(
    "part",
    [
        ic.Anderson(depth=3),
        ic.Broyden(tol=0.5),
        ic.GMRES(),
        ic.Phantom(steps=3),
        ic.Implicit(ic.Picard(tol=1e-7)),
        ic.Unrolled(),
        ic.Adjoint(),
        ic.RK4(),
        ic.Tsit5(rtol=1e-7),
        ic.SteadyState(ode_solver=ic.Bosh3()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_part_is_remade_from_its_description(part: Any):
    data = ic.describe(part)
    assert ic.create(part.kind, json.loads(json.dumps(data))) == part


def test_a_name_that_several_provide_is_qualified(registry: Registry):
    registry.register("root_solver", "picard", ic.Anderson)
    assert ic.describe(ic.Picard())["name"] == "implicitcore:picard"


class Forgetful(Toy):
    def __init__(self, cell: nn.Module, *, lost: float = 1.0) -> None:
        super().__init__(cell)


def test_what_cannot_be_described_is_an_error(registry: Registry):
    with pytest.raises(
        ic.ConfigError,
        match=r"norm: a builtin_function_or_method object cannot be written in a configuration",
    ):
        ic.describe(Chain(norm=math.sqrt))
    with pytest.raises(ic.ConfigError, match=r"Forgetful is not a registered layer: register it"):
        _ = Forgetful(Cell()).config
    registry.register("layer", "forgetful", Forgetful)
    with pytest.raises(
        ic.ConfigError, match="lost: Forgetful must keep this option as an attribute"
    ):
        _ = ic.build("forgetful", Cell()).config
    with pytest.raises(ic.ConfigError, match="Linear is not a registered part"):
        ic.describe(nn.Linear(1, 1))
