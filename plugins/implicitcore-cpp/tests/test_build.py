"""The registration, and what is said where nothing can be built."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import implicitcore as ic
from implicitcore_cpp import CppBackend, backend, build

LIGHT = "import sys; sys.modules['torch'] = None; import implicitcore_cpp.plugin"


@pytest.fixture(autouse=True)
def _forget():
    backend._reason.cache_clear()
    yield
    backend._reason.cache_clear()


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As if nothing had been built yet."""
    monkeypatch.setenv("IMPLICITCORE_CPP_CACHE", str(tmp_path))
    return tmp_path


def test_the_plugin_needs_no_torch():
    assert subprocess.run([sys.executable, "-c", LIGHT], check=False).returncode == 0


def test_it_is_registered():
    assert isinstance(ic.create("backend", "cpp"), CppBackend)


def test_without_a_compiler_it_says_so(unbuilt, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = re.escape("no C++ compiler: no-such-compiler (of the variable CXX) is not on the path")
    with pytest.raises(ic.ConfigError, match=f"CppBackend cannot run here: .*{reason}"):
        ic.fixed_point(lambda z, x: torch.cos(z), torch.zeros(2, 3), None, backend=CppBackend())
    with pytest.raises(build.BuildError, match=reason):
        build.build()


def test_auto_takes_it_where_it_is_built(unbuilt, monkeypatch, cpp):
    assert type(ic.create("backend", "auto")) is ic.TorchBackend
    assert "not built yet" in str(CppBackend().unready_reason())
    monkeypatch.setattr(build, "is_built", lambda: True)
    assert type(ic.create("backend", "auto")) is CppBackend


def test_the_command_says_where_it_is_built(cpp, capsys):
    assert build.main() == 0
    assert str(build.target()) in capsys.readouterr().out
    assert build.is_built()


def test_the_command_is_no_error_without_a_compiler(unbuilt, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main() == 0
    assert "is not built: there is no C++ compiler" in capsys.readouterr().out


def test_a_compiler_that_fails_is_an_error_with_its_words(unbuilt, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho internal compiler error >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(build.BuildError, match="internal compiler error"):
        build.build()
    assert not build.is_built()


def test_a_change_of_a_source_or_a_flag_is_another_build(monkeypatch):
    before = build.target()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    build._key.cache_clear()
    try:
        assert build.target() != before
    finally:
        monkeypatch.undo()
        build._key.cache_clear()
    assert build.target() == before
