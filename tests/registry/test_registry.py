from dataclasses import dataclass

import pytest
from support.sites import SOLVER, Site, hook, registers

from implicitcore import (
    AmbiguousPartError,
    Anderson,
    Dynamics,
    Picard,
    PluginError,
    PluginWarning,
    RootSolver,
    UnknownPartError,
)
from implicitcore.extend import Options
from implicitcore.options.kinds import CLASS_KINDS
from implicitcore.registry.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Mine(Options, RootSolver):
    def solve(self, system, z0):
        raise NotImplementedError


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_every_builtin_part_loads(registry: Registry):
    [builtin] = [plugin for plugin in registry.plugins() if plugin.name == "builtin"]
    assert {part.kind for part in builtin.parts} == {*CLASS_KINDS, "start"} - {"layer"}
    for part in builtin.parts:
        assert part.load().kind == part.kind
        assert part.summary
        assert registry.find(part.kind, part.qualified_name) is part


def test_a_misspelt_name_gets_its_near_match(registry: Registry):
    with pytest.raises(
        UnknownPartError,
        match="unknown root_solver 'andersen'; did you mean 'anderson'.*known: .*broyden",
    ):
        registry.find("root_solver", "andersen")


def test_a_name_of_another_kind_is_said_to_be_that(registry: Registry):
    steady = "'tsit5' is an ode_solver, not a root_solver: .*steady_state.*: \"tsit5\"}"
    with pytest.raises(UnknownPartError, match=steady):
        registry.find("root_solver", "tsit5")
    with pytest.raises(
        UnknownPartError, match=r"'picard' is a root_solver, not a gradient \(known"
    ):
        registry.find("gradient", "picard")


def test_a_misspelt_kind_gets_its_near_match(registry: Registry):
    for ask in (
        registry.parts,
        lambda kind: registry.find(kind, "x"),
        lambda kind: registry.register(kind, "x", Mine),
    ):
        with pytest.raises(
            UnknownPartError, match="unknown kind 'solver'; did you mean .*'root_solver'"
        ):
            ask("solver")


def test_an_unknown_name_mentions_the_plugins_left_out(registry: Registry, site: Site):
    site.add("bad", "1 / 0")
    with pytest.warns(PluginWarning):
        registry.plugins()
    with pytest.raises(UnknownPartError, match=r"plugins left out: bad"):
        registry.find("root_solver", "something-of-bad")


def test_where_there_is_no_part_of_a_kind_the_error_says_what_to_install(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("IMPLICITCORE_DISABLE_PLUGINS", "all")
    with pytest.raises(
        UnknownPartError, match=r"unknown layer 'deq' \(pip install implicitcore-layers\)"
    ):
        registry.find("layer", "deq")


def test_a_name_of_a_plugin_that_is_not_there_says_what_to_install(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("implicitcore.registry.registry._FAMILIES", ("acme", "scipy"))
    for kind, name in (("backend", "acme"), ("root_solver", "acme-krylov")):
        with pytest.raises(UnknownPartError, match=r"\(pip install implicitcore-acme\)$"):
            registry.find(kind, name)
    with pytest.raises(UnknownPartError, match=r"'scipy-krylov'(?!.*pip install)"):
        registry.find("root_solver", "scipy-krilov")


def test_two_providers_of_a_name_are_an_error_at_use_alone(registry: Registry, site: Site):
    site.add("other", registers("anderson", "other_code:Solver"), files={"other_code.py": SOLVER})
    assert registry.find("root_solver", "picard").load() is Picard
    with pytest.raises(
        AmbiguousPartError,
        match="2 distributions; say which: 'implicitcore:anderson' .* or 'other:anderson'",
    ):
        registry.find("root_solver", "anderson")
    assert registry.find("root_solver", "implicitcore:anderson").load() is Anderson
    assert registry.find("root_solver", "other:anderson").load().__module__ == "other_code"
    assert registry.name_of(Anderson) == "implicitcore:anderson"
    assert registry.name_of(Picard) == "picard"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:X", "cannot be imported: ModuleNotFoundError"),
        ("target_code:Solvr", "module target_code has no 'Solvr'; did you mean 'Solver'"),
        ("target_code:dataclass", "is not a root_solver class"),
        ("implicitcore.ode_solvers.base:ODESolver", "is not a root_solver class"),
    ],
)
def test_a_target_that_cannot_be_used_is_an_error_at_use(
    registry: Registry, site: Site, target: str, message: str
):
    site.add("mine", registers("good", target), files={"target_code.py": SOLVER})
    part = registry.find("root_solver", "good")
    with pytest.raises(PluginError, match=f"root_solver 'good' of mine 1.0.*{message}"):
        part.load()


def test_a_missing_requirement_is_named(registry: Registry, site: Site):
    site.add(
        "mine",
        hook(
            "registry.register('root_solver', 'x', 'no_such:X', summary='', "
            "requires=['no-such-dist>=2', 'torch'])"
        ),
    )
    with pytest.raises(
        PluginError, match="it needs no-such-dist>=2: pip install 'no-such-dist>=2'"
    ):
        registry.find("root_solver", "x").load()


LAZY = """
def __getattr__(name):
    raise ImportError(f"no {name} today")
"""


def test_a_module_that_imports_when_a_name_is_read_may_fail_there(registry: Registry, site: Site):
    site.add("mine", registers("good", "lazy_code:Solver"), files={"lazy_code.py": LAZY})
    with pytest.raises(
        PluginError,
        match="root_solver 'good' of mine 1.0 cannot be imported: ImportError: no Solver today",
    ):
        registry.find("root_solver", "good").load()


def test_a_class_that_lacks_a_method_is_refused_before_it_is_made(registry: Registry, site: Site):
    site.add(
        "mine",
        registers("good", "abstract_code:Solver"),
        files={"abstract_code.py": SOLVER.replace("def solve", "def solv")},
    )
    with pytest.raises(
        PluginError,
        match="root_solver 'good' of mine 1.0: Solver cannot be made, for it lacks solve",
    ):
        registry.find("root_solver", "good").load()


def test_a_qualified_name_is_found_however_the_distribution_is_spelt(
    registry: Registry, site: Site
):
    site.add("My_Dist", registers("good", "a:B"))
    assert registry.find("root_solver", "my-dist:good") == registry.find(
        "root_solver", "My_Dist:good"
    )
    with pytest.raises(
        UnknownPartError, match="unknown root_solver 'my-dits:good'; did you mean 'my-dist:good'"
    ):
        registry.find("root_solver", "my-dits:good")
    with pytest.raises(UnknownPartError):
        registry.find("root_solver", ":good")


def test_a_class_is_registered_for_this_process(registry: Registry):
    with pytest.raises(UnknownPartError, match="Mine is not a registered root_solver: register it"):
        registry.name_of(Mine)
    part = registry.register("root_solver", "mine", Mine, summary="mine")
    assert registry.find("root_solver", "local:mine") == part
    assert registry.find("root_solver", "mine").load() is Mine
    assert registry.name_of(Mine) == "mine"
    part = registry.register(
        "root_solver", "mine", "implicitcore.root_solvers.anderson:Anderson", requires="torch"
    )
    assert part.requires == ("torch",)
    assert registry.find("root_solver", "mine").load() is Anderson


def test_a_class_of_another_kind_is_refused_at_once(registry: Registry):
    for wrong in (Dynamics, int):
        with pytest.raises(PluginError, match="is not a root_solver class"):
            registry.register("root_solver", "mine", wrong)
    with pytest.raises(PluginError, match="cannot be named 'a:b'"):
        registry.register("root_solver", "a:b", Mine)
    with pytest.raises(
        PluginError,
        match="the target of root_solver 'mine' must be 'module:attribute', not 'nonsense'",
    ):
        registry.register("root_solver", "mine", "nonsense")
    assert "mine" not in [part.name for part in registry.parts("root_solver")]


def test_parts_are_ordered(registry: Registry, site: Site):
    site.add(
        "mine",
        registers("bdf", "a:B", "ode_solver")
        + "    registry.register('dynamics', 'a', 'a:B', summary='')\n",
    )
    keys = [
        (part.kind, part.name)
        for part in registry.parts()
        if part.provider in ("mine", "implicitcore")
    ]
    assert (
        keys.index(("dynamics", "a"))
        < keys.index(("dynamics", "fixed_point"))
        < keys.index(("root_solver", "picard"))
    )
    assert [part.name for part in registry.parts("ode_solver")] == sorted(
        part.name for part in registry.parts("ode_solver")
    )
