import builtins
import signal
import sys
import threading
import warnings

import pytest
from support.sites import HEADER, SOLVER, Site, hook, registers, run_python

import implicitcore
from implicitcore import PluginError, PluginWarning, UnknownPartError
from implicitcore.extend import Registrar
from implicitcore.registry import builtin
from implicitcore.registry.registry import Registry

BROKEN = {
    "import": (
        "import no_such_package",
        "broken",
        "ModuleNotFoundError: No module named 'no_such_package'",
    ),
    "exit": ("raise SystemExit(3)", "broken", "SystemExit: 3"),
    "generator exit": ("raise GeneratorExit", "broken", "GeneratorExit"),
    "interrupt of its own": (
        "raise KeyboardInterrupt('mine')",
        "broken",
        "KeyboardInterrupt: mine",
    ),
    "an exception of its own": (
        "class Stop(BaseException): pass\nraise Stop('now')",
        "broken",
        "Stop: now",
    ),
    "an exception without a text": (
        "class Dumb(BaseException):\n    def __str__(self): raise ValueError\nraise Dumb",
        "broken",
        "left out: Dumb",
    ),
    "exit in the hook": (hook("raise GeneratorExit"), "broken", "GeneratorExit"),
    "escapes in an error": (
        "raise ValueError('\\x1b[31mred\\x1b]0;title\\x07')",
        "broken",
        r"ValueError: \x1b[31mred\x1b]0;title\x07",
    ),
    "escapes in a summary": (
        registers("x", "a:B", summary="\x1b[31mred"),
        "broken",
        r"must be one line of text, not '\x1b[31mred'",
    ),
    "escapes in a name": (registers("x\x1b[31m", "a:B"), "broken", r"named 'x\x1b[31m'"),
    "long name": (registers("x" * 65, "a:B"), "broken", "at most 64 letters, received 65"),
    "long line": (
        registers("x", "a:B", summary="x" * 501),
        "broken",
        "(at most 500 printable letters, received 501)",
    ),
    "escapes in the requirements": (
        hook("registry.register('root_solver', 'x', 'a:B', summary='', requires=['\\x1b[31m'])"),
        "broken",
        r"must be names of distributions, not ('\x1b[31m',)",
    ),
    "long error": ("raise ValueError('x' * 10**6)", "broken", "letters are left out"),
    "half-way": (
        hook("registry.register('root_solver', 'half', 'a:B', summary='first'); 1 / 0"),
        "broken",
        "ZeroDivisionError",
    ),
    "misspelt hook": (
        f"{HEADER}\n@hookimpl\ndef implicitcore_registr(registry): ...",
        "broken",
        "unknown hook 'implicitcore_registr'; did you mean 'implicitcore_register'?",
    ),
    "foreign marker": (
        "import pluggy\nIMPLICITCORE_API = 1\n@pluggy.HookimplMarker('other')\ndef "
        "implicitcore_register(registry): ...",
        "broken",
        "has the marker of 'other': use 'from implicitcore import hookimpl'",
    ),
    "no marker": (
        "IMPLICITCORE_API = 1\ndef implicitcore_register(registry): ...",
        "broken",
        "has no marker: put @hookimpl above it",
    ),
    "no hook": (
        HEADER,
        "broken",
        "has no function implicitcore_register(registry) marked with @hookimpl",
    ),
    "wrong argument": (
        f"{HEADER}\n@hookimpl\ndef implicitcore_register(register): ...",
        "broken",
        "PluginValidationError",
    ),
    "unknown kind": (
        registers("x", "a:B", "rootsolver"),
        "broken",
        "unknown kind 'rootsolver'; did you mean 'root_solver'",
    ),
    "bad name": (registers("Two Words", "a:B"), "broken", "cannot be named 'Two Words'"),
    "object target": (
        hook("registry.register('root_solver', 'x', int, summary='')"),
        "broken",
        "must be a text 'module:attribute'",
    ),
    "long summary": (
        registers("x", "a:B", summary="two\nlines"),
        "broken",
        "must be one line of text, not 'two\\nlines'",
    ),
    "no target": (
        registers("x", "a.B"),
        "broken",
        "the target of root_solver 'x' must be 'module:attribute', not 'a.B'",
    ),
    "twice": (
        hook("[registry.register('root_solver', 'x', 'a:B', summary='') for _ in '12']"),
        "broken",
        "registered twice",
    ),
    "no version": (
        registers("x", "a:B").replace("IMPLICITCORE_API = 1", ""),
        "broken",
        "add IMPLICITCORE_API = 1 to it",
    ),
    "bad version": (HEADER.replace("= 1", "= '1'"), "broken", "must be an integer"),
    "newer": (
        hook("raise AssertionError('called')").replace(
            "IMPLICITCORE_API = 1", "IMPLICITCORE_API = 99"
        ),
        "incompatible",
        "plugin API 99 and this implicitcore has 1: pip install --upgrade implicitcore",
    ),
}


def plugin_of(registry: Registry, name: str):
    return next(plugin for plugin in registry.plugins() if plugin.name == name)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_named_and_harms_nothing(site: Site, case: str):
    source, status, cause = BROKEN[case]
    site.add("bad-dist", source, entry="bad", version="2.5")
    site.add("good-dist", registers("good", "good_code:Solver"), files={"good_code.py": SOLVER})
    registry = Registry()
    with pytest.warns(PluginWarning) as caught:
        registry.plugins()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("plugin 'bad' of bad-dist 2.5 was left out: ")
    assert cause in message
    assert "IMPLICITCORE_DISABLE_PLUGINS=bad" in message
    bad = plugin_of(registry, "bad")
    assert (bad.status, bad.parts, bad.version) == (status, (), "2.5")
    assert registry.find("root_solver", "good").load().kind == "root_solver"
    assert {part.provider for part in registry.parts()} >= {"implicitcore", "good-dist"}
    assert not [part for part in registry.parts() if part.provider == "bad-dist"]


def test_the_core_registers_through_the_hook_of_everyone(monkeypatch: pytest.MonkeyPatch):
    registrar = Registrar("implicitcore", implicitcore.__version__)
    builtin.implicitcore_register(registrar)
    assert plugin_of(Registry(), "builtin").parts == registrar.parts
    monkeypatch.delattr(builtin.implicitcore_register, "implicitcore_impl")  # what @hookimpl leaves
    with pytest.raises(
        PluginError,
        match="implicitcore.registry.builtin.implicitcore_register has no marker: put "
        "@hookimpl above it",
    ):
        Registry().plugins()


def test_what_a_plugin_registered_is_recorded(site: Site):
    site.add("mine", registers("good", "good_code:Solver"), version="0.3")
    plugin = plugin_of(Registry(), "mine")
    assert (plugin.status, plugin.distribution, plugin.version, plugin.error) == (
        "ok",
        "mine",
        "0.3",
        "",
    )
    assert [part.qualified_name for part in plugin.parts] == ["mine:good"]
    assert plugin.seconds > 0


def test_the_code_of_a_part_is_imported_at_first_use(site: Site):
    site.add("mine", registers("good", "mine_code:Solver"), files={"mine_code.py": SOLVER})
    registry = Registry()
    part = registry.find("root_solver", "good")
    assert "mine_code" not in sys.modules
    part.load()
    assert "mine_code" in sys.modules


@pytest.mark.parametrize("name", ["entry", "Bad.Dist", "bad_dist", "other,entry", "all"])
def test_a_disabled_plugin_is_not_imported(site: Site, monkeypatch: pytest.MonkeyPatch, name: str):
    module = site.add("bad-dist", "raise RuntimeError", entry="entry")
    monkeypatch.setenv("IMPLICITCORE_DISABLE_PLUGINS", name)
    registry = Registry()
    assert plugin_of(registry, "entry").status == "disabled"
    assert module not in sys.modules
    assert registry.find("root_solver", "anderson").provider == "implicitcore"


def test_strict_makes_a_broken_plugin_an_error(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.add("bad-dist", "import no_such_package", entry="bad")
    monkeypatch.setenv("IMPLICITCORE_STRICT_PLUGINS", "1")
    registry = Registry()
    for _ in range(2):
        with pytest.raises(
            PluginError, match="plugin 'bad' of bad-dist 1.0 was left out: ModuleNotFoundError"
        ):
            registry.plugins()


def test_an_interrupt_is_not_a_broken_plugin(site: Site):
    builtins.press_once = [signal.SIGINT]  # type: ignore[attr-defined]
    site.add(
        "mine",
        "import builtins, signal\n"
        "if builtins.press_once: signal.raise_signal(builtins.press_once.pop())\n"
        + registers("good", "a:B"),
    )
    registry = Registry()
    # A process that was started in the background of a shell has the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.plugins()
    finally:
        signal.signal(signal.SIGINT, before)
    assert plugin_of(registry, "mine").status == "ok"


@pytest.mark.parametrize(
    "error", ["GeneratorExit", "SystemExit(2)", "type('Own', (BaseException,), {})"]
)
def test_a_part_whose_module_raises_anything_is_an_error_of_ours(site: Site, error):
    site.add("mine", registers("bad", "mine_part:Solver"), files={"mine_part.py": f"raise {error}"})
    with pytest.raises(PluginError, match="'bad' of mine 1.0 cannot be imported"):
        Registry().find("root_solver", "bad").load()


@pytest.mark.slow
def test_nothing_of_a_plugin_controls_the_terminal(site: Site):
    """Not its metadata, its docstrings and its errors, in any command that shows them."""
    red = "\x1b[31mred\x07"
    site.add(
        "mine",
        registers("bad", "mine_part:Solver"),
        version=f"1.0{red}",
        entry=f"mine{red}",
        files={"mine_part.py": f"raise ValueError({red!r})"},
    )
    site.add("broken", f"raise ValueError({red!r} * 10000)", version=f"2{red}")
    documented = SOLVER.replace("A solver for tests.", f"A solver. {red}")
    site.add("good", registers("good", "good_part:Solver"), files={"good_part.py": documented})
    for command in ("list", "plugins list", "plugins doctor -v", "info root_solver good"):
        code = (
            "import sys; sys.argv[1:] = "
            f"{command.split()!r}; from implicitcore.cli import main; main()"
        )
        shown = run_python("-c", code, path=(site,))
        text = shown.stdout + shown.stderr
        assert "red" in text or command == "list", text
        assert "\x1b" not in text
        assert "\x07" not in text


def test_a_plugin_that_asks_while_it_loads_fails_and_does_not_hang(site: Site):
    site.add(
        "mine",
        "from implicitcore import create\ncreate('root_solver', 'anderson')\n"
        + registers("good", "a:B"),
    )
    code = (
        "from implicitcore.registry.registry import REGISTRY; print([p.error for p in "
        "REGISTRY.plugins() if p.name == 'mine'])"
    )
    assert "it may only register its own" in run_python("-c", code, path=(site,)).stdout


def test_names_of_a_module_are_not_read(site: Site):
    lazy = (
        "\ndef __getattr__(name): raise AssertionError(name)\ndef __dir__(): return "
        "[*globals(), 'heavy']\n"
    )
    site.add("mine", registers("good", "a:B") + lazy)
    assert plugin_of(Registry(), "mine").status == "ok"


def test_a_distribution_that_is_on_the_path_twice_counts_once(
    site: Site, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    for folder in (site, Site(tmp_path / "editable")):
        folder.add("mine", registers("good", "a:B"))
    monkeypatch.syspath_prepend(tmp_path / "editable")
    registry = Registry()
    assert [plugin.name for plugin in registry.plugins()].count("mine") == 1
    assert registry.find("root_solver", "good").provider == "mine"


def test_two_entry_points_of_one_distribution_cannot_share_a_name(site: Site):
    module = site.add("mine", registers("good", "a:B"))
    site.write(
        "mine-1.0.dist-info/entry_points.txt",
        f"[implicitcore]\nfirst = {module}\nsecond = {module}\n",
    )
    registry = Registry()
    with pytest.warns(
        PluginWarning,
        match="registered already by the entry point 'first' of the same distribution",
    ):
        registry.plugins()
    assert registry.find("root_solver", "good").provider == "mine"


def test_metadata_without_a_name_is_not_fatal(site: Site):
    site.add("mine", registers("good", "a:B"))
    (site.folder / "mine-1.0.dist-info/METADATA").unlink()
    assert plugin_of(Registry(), "mine").status == "ok"


@pytest.mark.parametrize(
    "value",
    ["mine_plugin:implicitcore_register", "mine_plugin implicitcore_register", "mine-plugin"],
)
def test_an_entry_point_names_a_module(site: Site, value: str):
    site.add("mine", registers("good", "a:B"))
    site.write("mine-1.0.dist-info/entry_points.txt", f"[implicitcore]\nmine = {value}\n")
    with pytest.warns(
        PluginWarning,
        match=f"the entry point mine = {value} must name a module, as mine = my_package.plugin",
    ):
        Registry().plugins()


def test_sixteen_threads_discover_once(site: Site):
    builtins.plugin_imports = []  # type: ignore[attr-defined]
    slow = "import builtins, time\nbuiltins.plugin_imports.append(1)\ntime.sleep(0.2)\n"
    site.add("mine", slow + registers("good", "a:B"))
    site.add("bad", slow + "1 / 0")
    registry, barrier, found = Registry(), threading.Barrier(16), []

    def use() -> None:
        barrier.wait()
        found.append(registry.find("root_solver", "good"))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=use) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 16
    assert len(set(map(id, found))) == 1
    assert len(builtins.plugin_imports) == 2  # type: ignore[attr-defined]
    assert [str(warning.message)[:12] for warning in caught] == ["plugin 'bad'"]


def test_a_name_that_another_distribution_has_is_a_status_and_leaves_nothing_out(site: Site):
    site.add("a-dist", registers("anderson", "a:A"))
    site.add("b-dist", registers("mine", "b:B"))
    registry = Registry()
    for name in ("builtin", "a-dist"):
        plugin = plugin_of(registry, name)
        assert (plugin.status, plugin.usable) == ("conflict", True)
        [conflict] = plugin.conflicts
        assert [part.provider for part in conflict] == ["implicitcore", "a-dist"]
        assert plugin.error == (
            "root_solver 'anderson' is provided by 2 distributions: say "
            "'implicitcore:anderson' or 'a-dist:anderson'"
        )
    assert plugin_of(registry, "b-dist").status == "ok"
    assert registry.find("root_solver", "a-dist:anderson").target == "a:A"
    assert "left out" not in refusal(registry, "andersen")


def refusal(registry: Registry, name: str) -> str:
    with pytest.raises(UnknownPartError) as caught:
        registry.find("root_solver", name)
    return str(caught.value)
