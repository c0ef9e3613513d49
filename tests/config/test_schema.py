from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from annotated_types import Ge
from pydantic import BaseModel
from torch import nn

import implicitcore as ic
from implicitcore.config import build as config
from implicitcore.config import schema
from implicitcore.config.schema import config_schema
from implicitcore.extend import Options
from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.registry.registry import REGISTRY, Registry

EXAMPLE = """
name: continuous_deq
root_solver:
  name: steady_state
  ode_solver: tsit5
  tol: 1e-4        # PyYAML reads a text
  max_steps: 50
gradient:
  name: implicit
  solver: {name: gmres, tol: 0.0001}
backend: auto
"""


@pytest.fixture
def problems_of():
    """What the validator of the package jsonschema says of a configuration."""
    jsonschema = pytest.importorskip("jsonschema")

    def problems_of(data: Any, *of: str) -> list[str]:
        return [
            error.json_path
            for error in jsonschema.Draft202012Validator(config_schema(*of)).iter_errors(data)
        ]

    return problems_of


def test_it_is_a_schema():
    pytest.importorskip("jsonschema").Draft202012Validator.check_schema(config_schema())


def test_a_real_yaml_file_is_valid(tmp_path, problems_of):
    (tmp_path / "layer.yaml").write_text(EXAMPLE)
    data = ic.load_config(tmp_path / "layer.yaml")
    assert data["root_solver"]["tol"] == "1e-4"
    assert problems_of(data) == []
    assert config.prepare("layer", data).keywords["root_solver"].tol == 1e-4


CHANNELS = {"channels": [3, 4]}
NEEDED = {
    "layer homoode": {"channels": 3},
    "layer augmented_neural_ode": {"extra": 2},
    **{f"layer multiscale_{name}": CHANNELS for name in ("deq", "continuous_deq")},
    **{f"layer multiscale_{name}": CHANNELS for name in ("skip_reg_deq", "neural_ode")},
    "start augmented": {"extra": 2},
    "start learned": {"channels": 3},
    "start pyramid": CHANNELS,
    "cell contractive": {"features": 3},
    "cell monotone": {"features": 3},
    "cell homoode": {"channels": 3},
    "cell multiscale": CHANNELS,
}
"""What parts need beside their defaults."""


@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_every_part_with_its_defaults_is_valid(kind: str, problems_of):
    specs = {
        part.name: {"name": part.name, **NEEDED.get(f"{kind} {part.name}", {})}
        for part in REGISTRY.parts(kind)
    }
    described = {name: ic.describe(config.prepare(kind, spec)) for name, spec in specs.items()}
    assert {
        name: problems_of(data, kind, name) for name, data in described.items()
    } == dict.fromkeys(specs, [])
    assert problems_of(described[max(described)], kind) == []


@pytest.mark.parametrize(
    "data",
    [
        {"name": "deqq"},
        {"name": "anderson"},
        {"name": "torch.nn:Linear"},
        {"root_solver": "anderson"},
        "deq",
        {"name": "deq", "root_solvr": "anderson"},
        {"name": "deq", "cell": "torch.nn:Linear"},
        {"name": "deq", "root_solver": "tsit5"},
        {"name": "deq", "root_solver": None},
        {"name": "deq", "root_solver": "os:system"},
        {"name": "deq", "root_solver": {"name": "anderson", "toll": 1}},
        {"name": "deq", "root_solver": {"name": "anderson", "tol": -1}},
        {"name": "deq", "root_solver": {"name": "anderson", "tol": "much"}},
        {"name": "deq", "root_solver": {"name": "anderson", "depth": 2.5}},
        {"name": "deq", "root_solver": {"name": "anderson", "depth": True}},
        {"name": "deq", "on_failure": "shrug"},
        {"name": "homoode"},
        {"name": "homoode", "channels": 0},
        {"name": "deq", "shape": 3},
    ],
    ids=str,
)
def test_what_the_schema_refuses_the_reader_refuses_too(data: Any, problems_of):
    assert problems_of(data) != []
    if data != "deq":  # Python and a slot take the name alone; a file of a layer is a mapping
        with pytest.raises(ic.ConfigError):
            config.prepare("layer", data)


class Grid(BaseModel, frozen=True):
    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Odd(Options, ic.RootSolver):
    """Has every sort of slot.

    Attributes:
        inner: solves
            what is left.
        grids: each a :class:`Grid`.
    """

    needed: Annotated[int, Ge(2)]
    inner: ic.Anderson | None = None
    several: tuple[ic.RootSolver | ic.ODESolver, ...] = (ic.Picard(),)
    grids: tuple[Grid, ...] = (Grid(),)
    net: nn.Module | None = None

    def solve(self, system, z0):
        raise NotImplementedError


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    registry.register("root_solver", "odd", Odd, summary="odd")
    for module in (config, schema):
        monkeypatch.setattr(module, "REGISTRY", registry)
    return registry


def test_a_part_says_what_its_slots_take(registry: Registry):
    written = config_schema("root_solver", "odd")
    assert written["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert written["$ref"] == "#/$defs/root_solver.odd"
    odd = written["$defs"]["root_solver.odd"]
    assert (odd["title"], odd["description"]) == ("root_solver odd", "odd")
    assert odd["required"] == ["name", "needed"]
    assert odd["additionalProperties"] is False
    options = odd["properties"]
    assert options["name"] == {"enum": ["odd", "local:odd"]}
    assert options["needed"]["minimum"] == 2
    assert options["needed"]["type"] == ["integer", "string"]
    one = {
        "anyOf": [
            {"enum": ["anderson", "implicitcore:anderson"]},
            {"$ref": "#/$defs/root_solver.anderson"},
        ]
    }
    assert options["inner"] == {
        "anyOf": [one, {"type": "null"}],
        "description": "solves what is left.",
    }
    assert options["several"]["items"] == {
        "anyOf": [{"$ref": "#/$defs/root_solver"}, {"$ref": "#/$defs/ode_solver"}]
    }
    assert options["several"]["default"][0]["name"] == "picard"
    assert options["grids"] == {
        "type": "array",
        "items": {"$ref": "#/$defs/Grid"},
        "description": "each a Grid.",
    }
    assert written["$defs"]["Grid"]["properties"]["width"]["type"] == ["integer", "string"]
    assert "net" not in options  # only Python can give it
    [names, *mappings] = written["$defs"]["root_solver"]["anyOf"]
    assert "odd" not in names["enum"]  # its name alone does not make it
    assert {"$ref": "#/$defs/root_solver.odd"} in mappings


def test_slots_take_the_parts_that_fit(registry: Registry, problems_of):
    assert (
        problems_of(
            {
                "name": "odd",
                "needed": 2,
                "inner": "anderson",
                "several": ["gmres", "rk4"],
                "grids": [{"width": "4"}],
            },
            "root_solver",
        )
        == []
    )
    assert problems_of({"name": "odd", "needed": 2, "inner": "picard"}, "root_solver", "odd") == [
        "$.inner"
    ]


def test_a_shared_name_stands_there_qualified_alone(registry: Registry):
    registry.register("root_solver", "picard", ic.Anderson)
    written = config_schema("root_solver")["$defs"]
    assert written["root_solver.local:picard"]["properties"]["name"] == {"enum": ["local:picard"]}
    assert written["root_solver.implicitcore:picard"]["properties"]["name"] == {
        "enum": ["implicitcore:picard"]
    }
    assert "root_solver.picard" not in written


def test_a_part_that_cannot_be_imported_is_left_out_and_named(registry: Registry):
    registry.register("root_solver", "gone", "no_such_module:X")
    with pytest.warns(
        ic.PluginWarning,
        match="left out of the schema: root_solver 'gone' of local cannot be imported",
    ):
        written = config_schema("root_solver")
    assert "root_solver.gone" not in written["$defs"]
    with pytest.raises(ic.PluginError, match="'gone' of local cannot be imported"):
        config_schema("root_solver", "gone")
    with pytest.raises(ic.UnknownPartError, match="unknown kind 'command'"):
        config_schema("command")
