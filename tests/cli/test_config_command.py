import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import Result
from support.sites import SOLVER, Site, registers
from torch import nn

import implicitcore as ic
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY

Run = Callable[..., Result]

LAYER = """
name: deq
root_solver: {name: anderson, tol: 1e-5, depth: 3}
on_failure: raise
"""

FAULTY = """
name: deq
root_solver: {name: anderson, toll: 1e-5, depth: 0}
gradient: {name: implicit, solver: gmress}
on_failre: raise
cell: torch.nn:Linear
"""

EXPERIMENT = """
dataset: digits
layer: {name: homoode, channels: 4, horizon: -1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "layer.yaml": LAYER,
        "faulty.yaml": FAULTY,
        "experiment.yaml": EXPERIMENT,
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_sound_file_is_said_to_be_so(folder: Path, run: Run):
    result = run("config", "validate", "layer.yaml")
    assert (result.exit_code, result.stdout) == (
        0,
        "layer.yaml: valid configuration of a layer (DEQ); to build it, give from Python: cell\n",
    )


def test_every_problem_is_listed_with_the_file_and_its_path(folder: Path, run: Run):
    for command in ("validate", "show"):
        result = run("config", command, "faulty.yaml")
        assert (result.exit_code, result.stdout) == (1, "")
        first, *problems = result.stderr.splitlines()
        assert first == "Error: 5 problems:"
        beginnings = (
            "root_solver.toll: unknown option of anderson; did you mean 'tol'",
            "root_solver.depth: expected a number greater than or equal to 1, received 0",
            "gradient.solver: unknown root_solver 'gmress'; did you mean 'gmres'",
            "on_failre: unknown option of deq; did you mean 'on_failure'",
            "cell: given to deq from Python, not by a configuration",
        )
        for problem, beginning in zip(problems, beginnings, strict=True):
            assert problem.startswith(f"  faulty.yaml: {beginning}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: os:system\n", "unknown layer 'os:system'"),
        ("name: os:system\n", "(a configuration names registered parts, never an import path)"),
        ("name: !!python/name:os.system\n", "could not determine a constructor for the tag"),
        ("name: anderson\n", "'anderson' is a root_solver, not a layer"),
        ("name: deq\nname: deq\n", "'name' stands there twice"),
        ("[deq]\n", "expected a mapping, received ['deq']"),
    ],
)
def test_a_configuration_is_data(folder: Path, run: Run, text: str, message: str):
    (folder / "evil.yaml").write_text(text)
    result = run("config", "validate", "evil.yaml")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 1 problem:\n  evil.yaml: ")
    assert message in result.stderr


def test_a_file_that_holds_a_layer_under_a_key(folder: Path, run: Run):
    result = run("config", "validate", "experiment.yaml")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: 1 problem:\n  experiment.yaml: expected the configuration of a layer, a "
        "mapping with its 'name' and options; "
        "received the keys dataset, layer; for what stands under a key: --at layer\n"
    )
    result = run("config", "validate", "experiment.yaml", "--at", "layer")
    assert (
        result.stderr
        == "Error: 1 problem:\n  experiment.yaml: layer.horizon: expected a number greater "
        "than 0, received -1\n"
    )
    assert (
        "no key 'layr'; did you mean 'layer'? (keys: dataset, layer)"
        in run("config", "show", "experiment.yaml", "--at", "layr").stderr
    )


def test_a_file_that_is_not_there_gets_its_near_match(folder: Path, run: Run):
    result = run("config", "validate", "layr.yaml")
    assert result.exit_code == 2
    assert "there is no file 'layr.yaml'; did you mean 'layer.yaml'" in result.stderr
    assert "there is no file 'none/layer.yaml'\n" in run("config", "show", "none/layer.yaml").stderr


def test_a_name_with_two_providers_is_named_with_the_file(folder: Path, site: Site, run: Run):
    site.add("mine", registers("anderson", "mine_code:Solver"), files={"mine_code.py": SOLVER})
    result = run("config", "validate", "layer.yaml")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: layer.yaml: root_solver: root_solver 'anderson' is provided by 2 "
        "distributions; say which: "
    )
    (folder / "layer.yaml").write_text(
        "name: deq\nroot_solver: {name: 'mine:anderson', gain: 1e-5}\n"
    )
    assert run("config", "validate", "layer.yaml").exit_code == 0
    assert yaml.safe_load(run("config", "show", "layer.yaml").stdout)["root_solver"] == {
        "name": "mine:anderson",
        "gain": 1e-5,
        "backend": "torch",
    }


NEEDED = {"homoode": {"channels": 3}, "augmented_neural_ode": {"extra": 2}}
VECTORS = [each.name for each in REGISTRY.parts("layer") if "multiscale" not in each.name]


@pytest.mark.parametrize("part", VECTORS)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_shown_makes_the_same_layer(folder: Path, run: Run, part: str, as_json: bool):
    (folder / "short.json").write_text(json.dumps({"name": part, **NEEDED.get(part, {})}))
    shown = run("config", "show", "short.json", *["--json"] * as_json).stdout
    (folder / f"shown.{'json' if as_json else 'yaml'}").write_text(shown)
    width = 5 if part == "augmented_neural_ode" else 3
    linear = nn.Linear(width, width)
    given = {"predictor": nn.Linear(3, 3)} if part == "skip_deq" else {}
    short, full = (
        ic.build(ic.load_config(file), lambda z, x: torch.tanh(0.3 * linear(z) + x[:, :1]), **given)
        for file in ("short.json", f"shown.{'json' if as_json else 'yaml'}")
    )
    assert full.config == short.config
    options = options_of(type(short)).values()  # None by default, and not given: left out
    left_out = {option.name for option in options if option.default is None}
    assert set(short.config) - left_out <= set(yaml.safe_load(shown))
    x = torch.ones(2, 3)
    assert torch.equal(full(x), short(x))


def test_other_kinds_of_parts(folder: Path, run: Run):
    (folder / "solver.yaml").write_text("name: picard\ntol: 1e-7\n")
    result = run("config", "validate", "solver.yaml", "--kind", "root_solver")
    assert result.stdout == "solver.yaml: valid configuration of a root_solver (Picard)\n"
    shown = yaml.safe_load(run("config", "show", "solver.yaml", "--kind", "root_solver").stdout)
    assert ic.create("root_solver", shown) == ic.Picard(tol=1e-7)


def test_without_pyyaml_the_output_is_json_which_yaml_includes(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    (folder / "layer.json").write_text('{"name": "deq"}')
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    shown = run("config", "show", "layer.json").stdout
    assert json.loads(shown)["name"] == "deq"
    assert "pip install 'implicitcore[yaml]'" in run("config", "show", "layer.yaml").stderr


def test_the_schema_is_one_json_document(run: Run):
    for arguments, title in (
        ((), "layer"),
        (("root_solver",), "root_solver"),
        (("gradient", "phantom"), "gradient phantom"),
    ):
        written = json.loads(run("config", "schema", *arguments).stdout)
        assert written["title"] == f"implicitcore {title} configuration"
        assert written["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    result = run("config", "schema", "layer", "dqe")
    assert result.exit_code == 1
    assert "unknown layer 'dqe'; did you mean 'deq'" in result.stderr
