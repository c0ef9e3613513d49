"""A solver from a distribution that pip built and installed, from end to end."""

import subprocess
import sys

import pytest
from support.sites import Site, registers, run_python

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "third-party-solver"
version = "3.1"

[project.entry-points.implicitcore]
third-party = "third_party.plugin"

[tool.hatch.build.targets.wheel]
packages = ["third_party"]
"""

SOLVER = """
from dataclasses import dataclass

from implicitcore.extend import StepwiseRootSolver

@dataclass(frozen=True, kw_only=True)
class Halfway(StepwiseRootSolver[None]):
    \"\"\"Goes half of the way to f(z).\"\"\"

    def init(self, system, z):
        return None

    def step(self, system, now, state):
        return (now.z + now.fz) / 2, None
"""

USE = """
import torch
import implicitcore as ic

solver = ic.create("root_solver", {"name": "third-party-halfway", "tol": "1e-6", "max_steps": 100})
x = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
options = {"solver": solver, "gradient": ic.Implicit(solver)}
solution = ic.fixed_point(lambda z, x: z / 3 + x, torch.zeros_like(x), x, **options)
solution.z.sum().backward()
assert torch.allclose(solution.z, 1.5 * x, rtol=1e-5), solution
assert torch.allclose(x.grad, torch.full_like(x, 1.5), rtol=1e-5), x.grad
print(ic.describe(solver)["name"])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder into which pip has installed the distribution, with a broken plugin beside it."""
    project = Site(tmp_path_factory.mktemp("project"))
    project.write("pyproject.toml", PROJECT)
    project.write("third_party/__init__.py", "")
    project.write(
        "third_party/plugin.py",
        registers("third-party-halfway", "third_party.halfway:Halfway", summary="half of the way"),
    )
    project.write("third_party/halfway.py", SOLVER)
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
    subprocess.run(
        [*pip, "--target", str(site.folder), str(project.folder)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    site.add("bad-dist", "1 / 0", entry="bad")
    return site


def test_it_solves_by_name_and_the_broken_one_harms_nothing(installed: Site):
    done = run_python("-c", USE, path=(installed,))
    assert done.stdout == "third-party-halfway\n", done.stderr
    assert (
        done.stderr.count(
            "PluginWarning: plugin 'bad' of bad-dist 1.0 was left out: ZeroDivisionError"
        )
        == 1
    )


def test_the_command_line_knows_it(installed: Site):
    listed = run_python("-m", "implicitcore", "plugins", "list", path=(installed,)).stdout
    assert "third-party-solver 3.1 ok" in " ".join(listed.split())
    info = run_python(
        "-m", "implicitcore", "info", "root_solver", "third-party-halfway", path=(installed,)
    ).stdout
    assert "provider: third-party-solver 3.1" in info
    assert "Goes half of the way to f(z)." in info
