import sys
import warnings
from collections.abc import Callable

import click
import pytest
import torch
from click.testing import Result
from support.sites import SOLVER, Site, hook, registers, run_python

Run = Callable[..., Result]

BACKEND = """
from implicitcore import TorchBackend

class Absent(TorchBackend):
    def unavailable_reason(self):
        return "no device of that sort"

class Faulty(TorchBackend):
    def unavailable_reason(self):
        raise OSError("no driver")
"""


def lines_of(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_where_all_is_well_it_says_so(site: Site, run: Run):
    site.add(
        "mine", registers("good", "good_code:Solver"), version="0.7", files={"good_code.py": SOLVER}
    )
    site.add("off", "raise AssertionError")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPLICITCORE_DISABLE_PLUGINS", "off,cpp")  # cpp may be built
        result = run("plugins", "doctor")
    lines = lines_of(result)
    assert result.exit_code == 0
    assert lines[2].startswith(f"torch {torch.__version__}, built for ")
    assert lines[3].startswith("cuda ")
    assert "auto is torch: the first that runs on this CPU, asked in the order " in result.stdout
    assert "mine mine 0.7 ok 1 of 1 can be imported" in lines
    assert "off off 1.0 disabled" in lines
    assert lines[-1] == "all is well"


def test_each_problem_has_its_message_and_the_last_frames_of_its_traceback(site: Site, run: Run):
    deep = (
        "\n".join(f"def f{depth}():\n    f{depth + 1}()" for depth in range(6))
        + "\ndef f6():\n    1 / 0\nf0()\n"
    )
    site.add("bad-plugin", deep)
    site.add(
        "bad-part",
        registers("gone", "gone_code:Solver"),
        files={"gone_code.py": "import no_such_package"},
    )
    site.add("misspelt", registers("wrong", "good_code:Solvr"), files={"good_code.py": SOLVER})
    site.add("unmarked", "IMPLICITCORE_API = 1\ndef implicitcore_register(registry): ...")
    site.add("shared", registers("anderson", "good_code:Solver"))
    short, full = run("plugins", "doctor"), run("plugins", "doctor", "--verbose")
    assert (short.exit_code, full.exit_code) == (1, 1)
    lines = lines_of(short)
    assert "6 problems" in lines  # the shared name is one of the core's and one of the plugin's
    assert any(
        line.startswith("plugin 'bad-plugin' of bad-plugin 1.0 was left out: ZeroDivisionError")
        for line in lines
    )
    assert (
        "root_solver 'gone' of bad-part 1.0 cannot be imported: ModuleNotFoundError: No "
        "module named 'no_such_package'" in lines
    )
    assert (
        "ModuleNotFoundError: No module named 'no_such_package'" in lines
    )  # the end of its traceback
    assert any("module good_code has no 'Solvr'; did you mean 'Solver'" in line for line in lines)
    assert any("has no marker: put @hookimpl above it" in line for line in lines)
    assert any("say 'implicitcore:anderson' or 'shared:anderson'" in line for line in lines)
    assert "bad-part bad-part 1.0 ok 0 of 1 can be imported" in lines
    assert "bad-plugin bad-plugin 1.0 broken" in lines
    assert short.stdout.count("in f5\n") == 1
    assert "in f0\n" not in short.stdout
    assert "in f0\n" in full.stdout


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(site: Site, run: Run):
    body = (
        "registry.register('root_solver', 'x', 'no_such:X', summary='', "
        "requires=['no-such-dist>=2', 'torch'])"
    )
    site.add("mine", hook(body))
    result = run("plugins", "doctor")
    assert result.exit_code == 1
    assert "it needs no-such-dist>=2: pip install 'no-such-dist>=2'" in result.stdout
    assert (
        "note: not installed, and named as a requirement of a part: no-such-dist>=2 (pip "
        "install 'no-such-dist>=2')" in result.stdout
    )


def test_each_backend_says_why_it_cannot_run(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IMPLICITCORE_DISABLE_PLUGINS", "cpp")  # which may be built
    both = (
        "[registry.register('backend', name.lower(), f'kernels:{name}', summary='') for name "
        "in ('Absent', 'Faulty')]"
    )
    site.add("kernels-dist", hook(both), files={"kernels.py": BACKEND})
    result = run("plugins", "doctor")
    lines = lines_of(result)
    assert result.exit_code == 1
    assert "absent kernels-dist no: no device of that sort" in lines
    assert (
        "faulty kernels-dist no: backend 'faulty' of kernels-dist 1.0: OSError: no driver" in lines
    )
    assert "torch implicitcore yes" in lines
    assert any(
        line.startswith("auto is torch: the first that runs on this CPU, asked in the order absent")
        for line in lines
    )
    assert "1 problem" in lines  # a backend that cannot run here is none


def test_what_was_hardly_meant_is_noted(site: Site, run: Run):
    site.add("mine", registers("good", "good_code:Solver"), files={"good_code.py": SOLVER})
    site.write("other-1.0.dist-info/METADATA", "Name: other\nVersion: 1.0\n")
    site.write(
        "other-1.0.dist-info/entry_points.txt", "[implicitcore.plugins]\nother = other.plugin\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPLICITCORE_DISABLE_PLUGINS", "mien")
        result = run("plugins", "doctor")
    assert result.exit_code == 0
    assert (
        "note: IMPLICITCORE_DISABLE_PLUGINS names 'mien', which is no plugin; did you mean 'mine'?"
        in result.stdout
    )
    expected = (
        "note: the entry points of the group 'implicitcore.plugins' are not read (other = "
        "other.plugin): the group is 'implicitcore'"
    )
    assert expected in result.stdout


def test_a_command_is_imported_too(site: Site, run: Run):
    site.add(
        "mine",
        registers("greet", "greet_code:greet", "command"),
        files={"greet_code.py": "greet = print"},
    )
    result = run("plugins", "doctor")
    assert result.exit_code == 1
    assert (
        "command 'greet' of mine 1.0: the target 'greet_code:greet' is not a click command"
        in result.stdout
    )


def test_an_option_whose_type_is_missing_is_a_problem(site: Site, run: Run):
    code = "from __future__ import annotations\n" + SOLVER.replace("float, Gt(0)", "Missing, Gt(0)")
    site.add("mine", registers("good", "untyped_code:Solver"), files={"untyped_code.py": code})
    result = run("plugins", "doctor")
    assert result.exit_code == 1
    assert "root_solver 'good' of mine 1.0: Solver: name 'Missing' is not defined" in result.stdout


def test_without_torch_that_is_the_problem_and_no_other():
    code = "import sys; sys.modules['torch'] = None; from implicitcore.cli import main; main()"
    done = run_python("-c", code, "plugins", "doctor", IMPLICITCORE_DISABLE_PLUGINS="all")
    assert done.returncode == 1
    assert "torch         cannot be imported" in done.stdout
    assert "1 problem\n\ntorch cannot be imported: ModuleNotFoundError" in done.stdout
    assert "not imported" in done.stdout
    assert done.stderr == ""


def test_strict_does_not_keep_it_from_telling(
    site: Site, run: Run, monkeypatch: pytest.MonkeyPatch
):
    site.add("bad", "1 / 0")
    for command in ("list", "doctor"):
        monkeypatch.setenv("IMPLICITCORE_STRICT_PLUGINS", "1")
        assert (
            "plugin 'bad' of bad 1.0 was left out: ZeroDivisionError"
            in run("plugins", command).stdout
        )


class Device:
    name, major, minor, total_memory = "Some GPU", 9, 0, 141 * 2**30


def test_devices_are_named(monkeypatch: pytest.MonkeyPatch, run: Run):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Device)
    assert "cuda Some GPU, capability 9.0, 141 GiB; Some GPU, capability 9.0, 141 GiB" in lines_of(
        run("plugins", "doctor")
    )


def test_what_torch_says_of_an_old_driver_is_the_reason(monkeypatch: pytest.MonkeyPatch, run: Run):
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", UserWarning, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    lines = lines_of(run("plugins", "doctor"))
    assert f"torch {torch.__version__}, built for CUDA 13.0" in lines
    assert "cuda not available: The NVIDIA driver on your system is too old" in lines


def test_none_of_the_commands_imports_torch_before_it_runs():
    code = (
        "import sys; import implicitcore.cli; print(*{'torch', 'pydantic', "
        "'implicitcore.config.build'} & set(sys.modules))"
    )
    assert run_python("-c", code).stdout == "\n"
    assert isinstance(sys.modules["implicitcore.cli"].cli, click.Group)
