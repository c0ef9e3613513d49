"""``new-plugin``: what it writes installs, passes its own tests, and is what
plugins/implicitcore-example has."""

import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from rich.console import Console
from support.sites import ROOT, Environment, Site, run_python

from implicitcore import __version__
from implicitcore.cli import cli
from implicitcore.cli.new_plugin import render
from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.testing.requirements import needs
from implicitcore_lab import Job

NO_TORCH = (
    "-c",
    "import sys; sys.modules['torch'] = None; from implicitcore.cli import main; main()",
)


def new_plugin(*arguments: str, folder: Path):
    return CliRunner().invoke(cli, ["new-plugin", "--directory", str(folder), *arguments])


def files_of(folder: Path) -> dict[str, str]:
    """What lies in a folder, but for what tools leave there."""
    found = [
        file
        for file in folder.rglob("*")
        if file.is_file() and not {"__pycache__", ".pytest_cache"} & set(file.parts)
    ]
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in found}


def test_the_example_is_what_it_writes(tmp_path):
    assert new_plugin("example", folder=tmp_path).exit_code == 0
    assert files_of(ROOT / "plugins" / "implicitcore-example") == files_of(
        tmp_path / "implicitcore-example"
    )


def test_it_says_what_it_wrote_and_what_comes_next(tmp_path):
    done = new_plugin("fast", "--kind", "ode_solver", folder=tmp_path)
    folder = tmp_path / "implicitcore-fast"
    first, *files, last = done.output.splitlines()
    assert first == f"{folder}: the ode_solver fast-ssprk3"
    assert [line.strip() for line in files] == sorted(files_of(folder))
    assert last == f"Next: pip install -e '{folder}[test]', then pytest {folder}"


def test_the_name_of_the_distribution_means_the_plugin(tmp_path):
    new_plugin("implicitcore-two-words", folder=tmp_path)
    text = (tmp_path / "implicitcore-two-words" / "pyproject.toml").read_text(encoding="utf-8")
    assert 'two-words = "implicitcore_two_words.plugin"' in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "My_Solvers",
            "'My_Solvers' cannot be the name of a plugin: use lower-case letters and "
            "digits, a letter first, with '-' between ",
        ),
        ("My_Solvers", "words; did you mean 'my-solvers'?"),
        ("2fast", "between words\n"),
        ("../up", "between words\n"),
        ("", "between words\n"),
        ("all", "'all' has another meaning in IMPLICITCORE_DISABLE_PLUGINS or 'plugins list'"),
    ],
)
def test_an_impossible_name_is_a_usage_error(name, message, tmp_path):
    done = new_plugin(name, folder=tmp_path)
    assert done.exit_code == 2
    assert message in done.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    folder = tmp_path / "implicitcore-mine"
    folder.mkdir()
    done = new_plugin("mine", folder=tmp_path)
    assert (done.exit_code, done.output) == (
        1,
        f"Error: {folder} is there already: choose another name or another --directory\n",
    )
    assert not list(folder.iterdir())


def test_a_plugin_that_is_installed_under_the_name_is_pointed_out(tmp_path):
    site = Site(tmp_path / "site")
    site.add("implicitcore-mine", "", version="2.3")
    done = run_python(*NO_TORCH, "new-plugin", "mine", "--directory", str(tmp_path), path=(site,))
    note = "Note: implicitcore-mine 2.3 is installed here, and pip will replace it by yours\n"
    assert (done.returncode, done.stderr) == (0, note)


def test_the_example_in_its_help_works(tmp_path):
    (example,) = [
        line
        for line in CliRunner().invoke(cli, ["new-plugin", "--help"]).output.splitlines()
        if "Example: " in line
    ]
    words = example.partition("implicitcore new-plugin ")[2].split()
    assert new_plugin(*words, folder=tmp_path).exit_code == 0


def test_other_usage_errors(tmp_path):
    assert new_plugin("mine", folder=tmp_path / "nowhere").exit_code == 2
    assert new_plugin("mine", "--kind", "solver", folder=tmp_path).exit_code == 2


@pytest.mark.extras
@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_what_it_writes_passes_this_repositorys_lint(kind, tmp_path):
    needs("ruff")
    new_plugin("a-plugin-with-quite-a-long-name", "--kind", kind, folder=tmp_path)
    for command in (["check"], ["format", "--check"]):
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--config",
            str(ROOT / "pyproject.toml"),
            "--no-cache",
        ]
        done = subprocess.run(
            ruff, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_that_it_writes_measures_what_it_says(tmp_path, monkeypatch):
    new_plugin("mine", "--kind", "table", folder=tmp_path)
    module = tmp_path / "implicitcore-mine" / "implicitcore_mine" / "krylov.py"
    table = vars(import_file(module, monkeypatch))["Krylov"](features=12)
    said = io.StringIO()
    job = Job(table.rows(), table.budget("smoke"), [0, 1], tmp_path, True, {}, Console(file=said))
    results = table.measure(job)
    assert all(each["solved"] == 1.0 for found in results.values() for each in found)
    assert table.claims[0].ours(results) == pytest.approx(1.0, abs=0.15)
    assert results["picard"][0]["steps"] > 5 * results["gmres"][0]["steps"]
    (tmp_path / "runs" / "gmres-1-2.json").unlink()  # the rest is found there again
    measured = said.getvalue().count("\n")
    assert table.measure(job) == results
    assert said.getvalue().count("\n") == measured + 1


def import_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def test_the_range_of_versions_is_that_of_this_core():
    major, minor = map(int, __version__.split(".")[:2])
    assert (
        f'"implicitcore>={major}.{minor},<{major}.{minor + 1}"'
        in render("fast", "backend")["pyproject.toml"]
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the source distribution of the core."""
    folder = tmp_path_factory.mktemp("dist")
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-d",
        str(folder),
        "-t",
        "wheel",
        "-t",
        "sdist",
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


def test_the_template_is_in_the_wheel_and_in_the_source_distribution(built):
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "implicitcore" / "cli" / "template").rglob("*")
        if path.is_file()
    }
    assert len(expected) >= 7 + len(NAMED_KINDS)
    (wheel,) = built.glob("*.whl")
    assert expected <= set(zipfile.ZipFile(wheel).namelist())
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert expected <= {name.partition("/")[2] for name in archive.getnames()}


@dataclass(frozen=True)
class Written:
    """Where what new-plugin wrote is installed, and the name of the part of each kind."""

    environment: Environment
    folder: Path
    names: dict[str, str]

    def distribution(self, kind: str) -> str:
        return f"implicitcore-our-{kind.replace('_', '-')}"


@pytest.fixture(scope="module")
def written(built, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """What the wheel writes for each kind, all installed by one call of pip."""
    folder = tmp_path_factory.mktemp("plugins")
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "core")
    found = Written(Environment(folder / "venv", (folder / "core",)), folder, {})
    links = []
    for kind in NAMED_KINDS:
        name = found.distribution(kind)
        command = ("-m", "implicitcore", "new-plugin", name, "--kind", kind)
        said = found.environment.run(*command, folder=folder).stdout
        found.names[kind] = said.splitlines()[0].split()[-1]
        links += ["-e", f"./{name}"]
    found.environment.install(*links, folder=folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_what_the_wheel_writes_installs_and_is_listed(kind, written):
    name, distribution = written.names[kind], written.distribution(kind)
    listed = written.environment.run(*NO_TORCH, "list", kind)
    assert [line.split()[2] for line in listed.stdout.splitlines() if name in line] == [
        distribution
    ], listed.stderr
    info = written.environment.run("-m", "implicitcore", "info", kind, name)
    assert f"provider: {distribution} 0.1.0" in info.stdout


@pytest.mark.slow
def test_what_the_wheel_writes_passes_its_own_tests(written):
    """All in one process, most of whose time goes into imports."""
    options = ("-W", "error", "-p", "no:cacheprovider", "-rA")
    folders = [written.distribution(kind) for kind in NAMED_KINDS]
    done = written.environment.run("-m", "pytest", *options, *folders, folder=written.folder)
    assert done.returncode == 0, done.stdout
    for name in folders:
        assert f"/test_{name.replace('-', '_')}.py::test_contract[" in done.stdout, done.stdout


def test_the_command_needs_no_torch(tmp_path):
    assert run_python(*NO_TORCH, "new-plugin", "mine", "--directory", str(tmp_path)).returncode == 0


def test_the_tests_of_two_plugins_run_in_one_call(tmp_path):
    """Each has a test module of its own name, which pytest imports beside the other's."""
    for name in ("one", "two"):
        new_plugin(name, "--kind", "start", folder=tmp_path)
    paths = [str(tmp_path / f"implicitcore-{name}") for name in ("one", "two")]
    done = run_python("-m", "pytest", "-q", "--collect-only", *paths, PYTHONPATH=":".join(paths))
    assert done.returncode == 0, done.stdout
    assert "error" not in done.stdout
