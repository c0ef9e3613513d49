"""Seven distributions in two folders, four of them broken, each in another way: one result,
whatever the order of things."""

import subprocess
from typing import Any

import pytest
from support.sites import HEADER, SOLVER, Site, hook, registers, run_python

DISCOVER = """
import sys, threading, warnings
sys.modules["torch"] = None  # an import of torch fails
from implicitcore.errors import ImplicitCoreError
from implicitcore.registry.registry import REGISTRY

barrier, found = threading.Barrier(16), []
def use():
    barrier.wait()
    found.append(REGISTRY.parts())

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    threads = [threading.Thread(target=use) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(len(found), "answers,", len(set(found)), "different")
print(*[warning.message for warning in caught], sep="\\n")
for plugin in REGISTRY.plugins():
    print(plugin.name, plugin.distribution, plugin.version, plugin.status, plugin.error)
print(*found[0], sep="\\n")
for name in ("first", "twice", "b-good:twice", "half"):
    try:
        print("found", REGISTRY.find("root_solver", name))
    except ImplicitCoreError as error:
        print("error", error)
"""

BROKEN = {
    "bad-api": (
        registers("newer", "a:B").replace("IMPLICITCORE_API = 1", "IMPLICITCORE_API = 99"),
        "pip install --upgrade implicitcore",
    ),
    "bad-half": (
        hook("registry.register('root_solver', 'half', 'a:B', summary=''); 1 / 0"),
        "ZeroDivisionError: division by zero",
    ),
    "bad-hook": (
        f"{HEADER}\n@hookimpl\ndef implicitcore_registr(registry): ...",
        "did you mean 'implicitcore_register'?",
    ),
    "bad-import": (
        "import no_such_package",
        "ModuleNotFoundError: No module named 'no_such_package'",
    ),
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Site]:
    """Good and broken distributions in each of two folders."""
    left, right = (Site(tmp_path_factory.mktemp(name)) for name in ("left", "right"))
    for site, name in zip((left, right, left, right), BROKEN, strict=True):
        site.add(name, BROKEN[name][0], version="2.0")
    right.add("a-good", registers("first", "seven_code:Solver"), files={"seven_code.py": SOLVER})
    left.add("b-good", registers("twice", "b:B"))
    right.add("c-good", registers("twice", "c:C"))
    return left, right


def discover(
    sites: tuple[Site, ...], seed: int = 0, **environment: Any
) -> subprocess.CompletedProcess[str]:
    return run_python("-c", DISCOVER, path=sites, PYTHONHASHSEED=str(seed), **environment)


def test_neither_hash_seed_nor_path_order_nor_threads_matter(sites: tuple[Site, Site]):
    runs = [discover(path, seed) for path in (sites, sites[::-1]) for seed in range(10)]
    assert [run.stderr for run in runs] == [""] * 20
    assert len({run.stdout for run in runs}) == 1


def test_the_broken_are_named_once_and_the_good_work(sites: tuple[Site, Site]):
    lines = discover(sites).stdout.splitlines()
    assert lines[0] == "16 answers, 1 different"
    for line, (name, (_, cause)) in zip(lines[1:5], BROKEN.items(), strict=True):
        assert line.startswith(f"plugin '{name}' of {name} 2.0 was left out: ")
        assert cause in line
        assert f"set IMPLICITCORE_DISABLE_PLUGINS={name}" in line
    ours = {"a-good", "b-good", "c-good", *BROKEN}
    statuses = [line.split()[:4] for line in lines[5:] if line.split()[0] in ours]
    assert statuses == [
        ["a-good", "a-good", "1.0", "ok"],
        ["b-good", "b-good", "1.0", "conflict"],
        ["bad-api", "bad-api", "2.0", "incompatible"],
        *([name, name, "2.0", "broken"] for name in list(BROKEN)[1:]),
        ["c-good", "c-good", "1.0", "conflict"],
    ]
    assert "root_solver 'anderson' of implicitcore" in " ".join(lines)
    first, twice, qualified, half = lines[-4:]
    assert first == "found root_solver 'first' of a-good 1.0"
    assert twice == (
        "error root_solver 'twice' is provided by 2 distributions; say which: "
        "'b-good:twice' (b:B) or 'c-good:twice' (c:C)"
    )
    assert qualified == "found root_solver 'twice' of b-good 1.0"
    assert half.startswith("error unknown root_solver 'half'")
    assert half.endswith("(plugins left out: bad-api, bad-half, bad-hook, bad-import)")


@pytest.mark.parametrize(
    ("disabled", "left"),
    [("bad-import,Bad_Half", 2), ("bad-api,bad-half,bad-hook,bad-import", 0), ("all", 0)],
)
def test_a_disabled_one_is_silent(sites: tuple[Site, Site], disabled: str, left: int):
    done = discover(sites, IMPLICITCORE_DISABLE_PLUGINS=disabled)
    assert done.stderr == ""
    assert done.stdout.count("was left out") == left
    assert ("found root_solver 'first' of a-good 1.0" in done.stdout) is (disabled != "all")


def test_strict_names_them_all(sites: tuple[Site, Site]):
    code = (
        "from implicitcore.registry.registry import REGISTRY; "
        "REGISTRY.find('root_solver', 'anderson')"
    )
    done = run_python("-c", code, path=sites, IMPLICITCORE_STRICT_PLUGINS="1")
    assert done.returncode == 1
    assert (
        "implicitcore.errors.PluginError: plugin 'bad-api' of bad-api 2.0 was left out"
        in done.stderr
    )
    assert done.stderr.count("was left out") == 4


TRAIN = """
import sys, warnings
warnings.simplefilter("error")
import implicitcore as ic
assert not {"torch", "pluggy"} & set(sys.modules)
ic.Anderson(), ic.ImplicitLayer(ic.FixedPoint(abs), solver=ic.Picard())
# Discovery runs at the first use of a name.
assert not {"pluggy", "a_train_plugin", "train_code"} & set(sys.modules)

import pluggy, torch
from implicitcore.registry.registry import Registry
from torch import nn

linear = nn.Linear(3, 3)
layer = ic.build(ic.load_config(sys.argv[1]), lambda z, x: torch.tanh(0.3 * linear(z) + x))
assert type(layer.root_solver).__module__ == "train_code", layer.root_solver
assert layer.root_solver.tol == 1e-5, layer.root_solver
assert ic.build(layer.config, linear).config == layer.config
assert layer.config["root_solver"]["name"] == "a-train:halfway", layer.config

def refuse(*_, **__):
    raise AssertionError("a hook was called, or a name looked up")

pluggy.HookCaller.__call__ = Registry.find = Registry.parts = refuse
layer(torch.ones(2, 3)).sum().backward()
print(bool(linear.weight.grad.abs().sum() > 0))
"""

HALFWAY = """
from dataclasses import dataclass
from implicitcore.extend import StepwiseRootSolver

@dataclass(frozen=True, kw_only=True)
class Halfway(StepwiseRootSolver[None]):
    def init(self, system, z):
        return None

    def step(self, system, now, state):
        return (now.z + now.fz) / 2, None
"""


def test_a_layer_from_yaml_trains_on_a_qualified_name_and_calls_no_hook(tmp_path):
    site = Site(tmp_path / "site")
    site.add(
        "a-train", registers("halfway", "train_code:Halfway"), files={"train_code.py": HALFWAY}
    )
    site.add("b-train", registers("halfway", "no_such_module:Other"))
    config = tmp_path / "layer.yaml"
    config.write_text("name: deq\nroot_solver:\n  name: a-train:halfway\n  tol: 1e-5\n")
    done = run_python("-c", TRAIN, str(config), path=(site,))
    assert done.stdout == "True\n", done.stderr
    config.write_text("name: deq\nroot_solver: halfway\n")
    done = run_python("-c", TRAIN, str(config), path=(site,))
    assert (
        "AmbiguousPartError: root_solver: root_solver 'halfway' is provided by 2 "
        "distributions; say which: " in done.stderr
    )
    assert (
        "'a-train:halfway' (train_code:Halfway) or 'b-train:halfway' (no_such_module:Other)"
        in done.stderr
    )
