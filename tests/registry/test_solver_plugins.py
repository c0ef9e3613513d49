"""The distributions of solvers as pip builds and installs them: found by name, described, light
until used."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from support.sites import ROOT, Site, run_python

NAMES = {
    "scipy": {
        "ode_solver": ["bdf", "dop853", "lsoda", "radau", "rk23", "rk45"],
        "root_solver": [
            "anderson",
            "broyden1",
            "broyden2",
            "df-sane",
            "diagbroyden",
            "excitingmixing",
            "hybr",
            "krylov",
            "linearmixing",
            "lm",
        ],
    },
    "torchdiffeq": {
        "ode_solver": [
            "adaptive_heun",
            "bosh3",
            "dopri5",
            "dopri8",
            "euler",
            "explicit_adams",
            "fehlberg2",
            "fixed_adams",
            "heun2",
            "heun3",
            "implicit_adams",
            "midpoint",
            "rk4",
            "scipy_solver",
        ]
    },
}

LIST = """
import sys
from implicitcore.registry.registry import REGISTRY
for kind in ("ode_solver", "root_solver"):
    parts = REGISTRY.parts(kind)
    print(kind, *[part.name for part in parts if part.provider == "implicitcore-{name}"])
print("heavy", *({{"torch", "scipy", "torchdiffeq"}} & set(sys.modules)))
"""

ROUND_TRIP = """
import implicitcore as ic
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY
for kind in ("ode_solver", "root_solver"):
    for part in REGISTRY.parts(kind):
        if part.provider == "implicitcore-{name}":
            solver = ic.create(kind, {{"name": part.name, "max_steps": 77}})
            described = ic.describe(solver)
            assert described["name"] == part.name and described["max_steps"] == 77, described
            assert ic.create(kind, described) == solver
            assert type(solver).__doc__
            for name in options_of(type(solver)):
                assert name in described or getattr(solver, name) is None
print("done")
"""


@pytest.fixture(scope="module", params=NAMES)
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Site]:
    """The plugin's name, and a folder into which pip has installed its distribution."""
    name = request.param
    try:
        distribution(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    site = Site(tmp_path_factory.mktemp("site"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--no-input",
    ]
    project = ROOT / "plugins" / f"implicitcore-{name}"
    subprocess.run(
        [*pip, "--target", str(site.folder), str(project)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return name, site


def test_the_distribution_is_complete(installed: tuple[str, Site]):
    name, site = installed
    files = {str(file.relative_to(site.folder)) for file in site.folder.rglob("*")}
    info = f"implicitcore_{name}-0.1.0.dist-info"
    assert {
        f"implicitcore_{name}/py.typed",
        f"{info}/licenses/LICENSE",
        f"{info}/entry_points.txt",
    } <= files


def test_every_method_is_found_and_nothing_heavy_is_imported(installed: tuple[str, Site]):
    name, site = installed
    done = run_python("-W", "error", "-c", LIST.format(name=name), path=(site,))
    found = []
    for kind in ("ode_solver", "root_solver"):
        methods = [f"{name}-{method}" for method in NAMES[name].get(kind, [])]
        found.append(" ".join([kind, *methods]))
    assert done.stdout.splitlines() == [*found, "heavy"], done.stderr


@pytest.mark.slow
def test_configurations_round_trip(installed: tuple[str, Site]):
    name, site = installed
    done = run_python("-W", "error", "-c", ROUND_TRIP.format(name=name), path=(site,))
    assert done.stdout == "done\n", done.stderr


@pytest.mark.slow
def test_the_command_line_describes_them(installed: tuple[str, Site]):
    name, site = installed
    kind = "ode_solver"
    part = f"{name}-{NAMES[name][kind][0]}"
    info = run_python("-m", "implicitcore", "info", kind, part, path=(site,)).stdout
    assert f"provider: implicitcore-{name} 0.1.0" in info
    assert "rtol" in info and "max_steps" in info


def test_the_name_builds_a_layer_that_trains(installed: tuple[str, Site]):
    name, site = installed
    code = f"""
import torch
import implicitcore as ic
weight = torch.tensor(0.3, requires_grad=True)
solver = ic.create("ode_solver", "{name}-{NAMES[name]["ode_solver"][1]}")
dynamics = ic.FixedPoint(lambda z, x: torch.tanh(weight * z + x))
layer = ic.ImplicitLayer(dynamics, solver=solver, gradient=ic.Adjoint(ic.Tsit5()))
layer(torch.ones(2, 3)).sum().backward()
print(bool(weight.grad > 0))
"""
    done = run_python("-c", code, path=(site,))
    assert done.stdout == "True\n", done.stderr
