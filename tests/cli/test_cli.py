import json
from collections.abc import Iterator
from resource import RUSAGE_CHILDREN, getrusage

import click
import pytest
from support.sites import SOLVER, Site, registers, run_python

from implicitcore.cli import cli

PROGRAM = ("-m", "implicitcore")
NO_TORCH = (
    "-c",
    "import sys; sys.modules['torch'] = None; from implicitcore.cli import main; main()",
)

COMMAND = """
import click

@click.command()
@click.option("--fail", is_flag=True)
def greet(fail):
    \"\"\"Say hello at length.\"\"\"
    if fail:
        import implicitcore as ic
        ic.create("root_solver", "andersen", toll=1)
    click.echo("hello")
"""


@pytest.fixture
def plugins(tmp_path) -> Site:
    """A good plugin with a solver and a command, and a broken one."""
    site = Site(tmp_path)
    body = registers("mine", "mine_code:Solver", summary="a solver of mine")
    body += "    registry.register('command', 'greet', 'greet_code:greet', summary='say hello')\n"
    site.add(
        "mine-dist", body, version="0.7", files={"mine_code.py": SOLVER, "greet_code.py": COMMAND}
    )
    site.add("bad-dist", "import no_such_package", entry="bad")
    return site


def test_plugins_list_needs_no_torch_and_names_the_broken_one(plugins: Site):
    done = run_python(*NO_TORCH, "plugins", "list", path=(plugins,))
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["mine-dist"][1:4] == ["mine-dist", "0.7", "ok"]
    assert lines["bad"][1:4] == ["bad-dist", "1.0", "broken"]
    assert (
        "plugin 'bad' of bad-dist 1.0 was left out: ModuleNotFoundError: No module named "
        "'no_such_package'" in done.stdout
    )


def test_our_own_plugins_are_light():
    found = json.loads(run_python(*NO_TORCH, "plugins", "list", "--json").stdout)
    ours = {
        plugin["name"]: plugin["error"]
        for plugin in found
        if plugin["distribution"].startswith("implicitcore")
    }
    assert "builtin" in ours
    assert not any(ours.values()), ours


def test_plugins_list_as_json(plugins: Site):
    done = run_python(
        *NO_TORCH, "plugins", "list", "--json", path=(plugins,), IMPLICITCORE_DISABLE_PLUGINS="bad"
    )
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert found["bad"]["status"] == "disabled"
    assert found["mine-dist"]["version"] == "0.7"
    assert found["mine-dist"]["parts"][0] == {
        "kind": "root_solver",
        "name": "mine",
        "target": "mine_code:Solver",
        "summary": "a solver of mine",
    }
    assert found["builtin"]["distribution"] == "implicitcore"


def test_a_shared_name_is_a_conflict_that_says_the_way_out(plugins: Site):
    plugins.add("other-dist", registers("mine", "no_such_module:Solver"))
    done = run_python(*NO_TORCH, "plugins", "list", path=(plugins,))
    assert done.returncode == 0
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert [lines[name][3] for name in ("builtin", "mine-dist", "other-dist")] == [
        "ok",
        "conflict",
        "conflict",
    ]
    way_out = (
        "shares names: root_solver 'mine' is provided by 2 distributions: say "
        "'mine-dist:mine' or 'other-dist:mine'"
    )
    assert f"plugin 'mine-dist' of mine-dist 0.7 {way_out}\n" in done.stdout
    assert f"plugin 'other-dist' of other-dist 1.0 {way_out}\n" in done.stdout
    found = {
        plugin["name"]: plugin
        for plugin in json.loads(
            run_python(*NO_TORCH, "plugins", "list", "--json", path=(plugins,)).stdout
        )
    }
    shared = {
        "kind": "root_solver",
        "name": "mine",
        "qualified_names": ["mine-dist:mine", "other-dist:mine"],
    }
    assert found["mine-dist"]["conflicts"] == found["other-dist"]["conflicts"] == [shared]
    assert (
        found["mine-dist"]["status"],
        len(found["mine-dist"]["parts"]),
        found["builtin"]["conflicts"],
    ) == ("conflict", 2, [])
    listed = run_python(
        *NO_TORCH, "list", "root_solver", path=(plugins,), IMPLICITCORE_DISABLE_PLUGINS="bad"
    ).stdout
    assert [line.split()[2] for line in listed.splitlines() if line.split()[1] == "mine"] == [
        "mine-dist",
        "other-dist",
    ]


def test_plugins_list_is_quick(plugins: Site):
    def seconds() -> float:
        before = getrusage(RUSAGE_CHILDREN)
        run_python(*PROGRAM, "plugins", "list", path=(plugins,))
        after = getrusage(RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # Of the processor: what it takes on a quiet machine, though the one that runs the tests is busy
    # with the others.
    assert min(seconds() for _ in range(5)) < 0.3


def test_help_lists_the_commands_of_plugins_without_importing_them(plugins: Site):
    plugins.write("greet_code.py", "raise AssertionError")
    done = run_python(*NO_TORCH, "--help", path=(plugins,))
    assert done.returncode == 0
    assert "say hello" in done.stdout
    assert done.stderr.startswith("Warning: plugin 'bad' of bad-dist 1.0 was left out")
    assert len(done.stderr.splitlines()) == 1


def test_a_command_of_a_plugin_runs(plugins: Site):
    done = run_python(*NO_TORCH, "greet", path=(plugins,))
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert (
        "Say hello at length." in run_python(*NO_TORCH, "greet", "--help", path=(plugins,)).stdout
    )


def test_an_error_in_a_command_is_one_message_and_no_traceback(plugins: Site):
    done = run_python(
        *PROGRAM, "greet", "--fail", path=(plugins,), IMPLICITCORE_DISABLE_PLUGINS="bad"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "Error: 1 problem:\n  unknown root_solver 'andersen'; did you mean 'anderson'"
    )
    assert "Traceback" not in done.stderr


def test_a_command_that_cannot_be_imported_is_named(plugins: Site):
    plugins.write("greet_code.py", "import no_such_package")
    done = run_python(*NO_TORCH, "greet", path=(plugins,), IMPLICITCORE_DISABLE_PLUGINS="bad")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: command 'greet' of mine-dist 0.7 cannot be imported: ModuleNotFoundError"
    )
    plugins.write("greet_code.py", "greet = print")
    done = run_python(*NO_TORCH, "greet", path=(plugins,), IMPLICITCORE_DISABLE_PLUGINS="bad")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: command 'greet' of mine-dist 0.7: the target 'greet_code:greet' is not a "
        "click command\n",
    )


def test_a_misspelt_command_gets_its_near_match(plugins: Site):
    done = run_python(*NO_TORCH, "greeet", path=(plugins,), IMPLICITCORE_DISABLE_PLUGINS="bad")
    assert done.returncode == 2
    assert "Error: unknown command 'greeet'; did you mean 'greet'? (commands: " in done.stderr


def test_list_shows_the_parts_and_who_provides_them(plugins: Site):
    rows = [
        line.split(maxsplit=3)
        for line in run_python(
            *NO_TORCH, "list", "root_solver", path=(plugins,)
        ).stdout.splitlines()
    ]
    assert ["root_solver", "mine", "mine-dist", "a solver of mine"] in rows
    assert ["root_solver", "anderson", "implicitcore", "Anderson acceleration"] in rows
    assert {row[0] for row in rows} == {"KIND", "root_solver"}


def test_info_shows_options_bounds_provider_and_file(plugins: Site):
    done = run_python(
        *PROGRAM, "info", "root_solver", "mine", path=(plugins,), IMPLICITCORE_DISABLE_PLUGINS="bad"
    )
    assert done.stderr == ""
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        "root_solver mine: a solver of mine",
        "provider: mine-dist 0.7",
        "class: mine_code:Solver",
        f"file: {plugins.folder / 'mine_code.py'}",
        "signature: Solver(*, gain=1.0, inner=None, backend=TorchBackend())",
        "options:",
        "gain float > 0 default 1.0",
        "inner root_solver or None default None",
        "backend backend default TorchBackend()",
        "",
        "A solver for tests.",
    ]


def test_info_of_a_command(plugins: Site):
    done = run_python(*NO_TORCH, "info", "command", "greet", path=(plugins,))
    assert f"command: greet_code:greet\nfile: {plugins.folder / 'greet_code.py'}\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ("info", "root_solver", "andersen"),
            1,
            "Error: unknown root_solver 'andersen'; did you mean 'anderson'",
        ),
        (
            ("info", "root_solvr", "anderson"),
            2,
            "unknown kind 'root_solvr'; did you mean 'root_solver' or 'ode_solver'? "
            "(kinds: layer, ",
        ),
        (
            ("info", "anderson", "x"),
            2,
            "unknown kind 'anderson'; 'anderson' is the name of a root_solver (kinds: ",
        ),
        (("list", "gradients"), 2, "unknown kind 'gradients'; did you mean 'gradient'?"),
        (
            ("check", "command", "train"),
            2,
            "unknown kind 'command' (kinds: layer, dynamics, root_solver, ode_solver, "
            "gradient, backend, start, cell, dataset, model, table)",
        ),
        (("config", "schema", "layr"), 2, "unknown kind 'layr'; did you mean 'layer'?"),
        (
            ("config", "show", "--kind", "layr", "x"),
            2,
            "unknown kind 'layr'; did you mean 'layer'?",
        ),
        (("info", "root_solver"), 2, "Error: 'info root_solver' lacks the NAME of a part"),
        (
            ("plugins", "lst"),
            2,
            "Error: unknown command 'lst'; did you mean 'list'? (commands: doctor, list)\n",
        ),
        (
            ("config", "valdate", "x"),
            2,
            "Error: unknown command 'valdate'; did you mean 'validate'? (commands: schema, "
            "show, validate)\n",
        ),
        (("plugins", "list", "--jsn"), 2, "Did you mean '--json'?"),
        (("trian",), 2, "Error: unknown command 'trian' (commands: "),
        (("trian",), 2, ") (pip install implicitcore-lab)"),
    ],
)
def test_errors_are_messages_with_an_exit_status(
    arguments: tuple[str, ...], status: int, message: str
):
    done = run_python(*NO_TORCH, *arguments, IMPLICITCORE_DISABLE_PLUGINS="all")
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["lst"], ["list", "solver"]])
def test_strict_is_a_message_too(plugins: Site, arguments: list[str]):
    done = run_python(*NO_TORCH, *arguments, path=(plugins,), IMPLICITCORE_STRICT_PLUGINS="1")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: plugin 'bad' of bad-dist 1.0 was left out")
    assert "Traceback" not in done.stderr


def commands_of(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands_of(command, *path, name)


@pytest.mark.parametrize("path", list(commands_of(cli)), ids=" ".join)
def test_the_help_of_each_command_shows_an_example(path: tuple[str, ...]):
    done = run_python(*NO_TORCH, *path, "--help", IMPLICITCORE_DISABLE_PLUGINS="all")
    assert done.returncode == 0
    assert f"Example: implicitcore {' '.join(path)}" in " ".join(done.stdout.split())


def test_version():
    done = run_python(*NO_TORCH, "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("implicitcore, version ")
