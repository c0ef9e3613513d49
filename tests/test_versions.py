"""One version, the core's, for every distribution of this repository."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.sites import ROOT

EXAMPLE = "implicitcore-example"  # what new-plugin writes: a stranger's, with a version of its own
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
OURS = [folder for folder in PLUGINS if folder.name != EXAMPLE]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


VERSION = project(ROOT)["version"]


def metadata(folder: Path, target: Path) -> dict[str, str]:
    """What a wheel of the distribution in this folder says, as pip asks its build backend."""
    code = "import hatchling.build as b, sys; b.prepare_metadata_for_build_wheel(sys.argv[1])"
    target.mkdir()
    subprocess.run([sys.executable, "-c", code, target], cwd=folder, check=True, timeout=60)
    [found] = target.glob("*.dist-info/METADATA")
    return dict(Parser().parsestr(found.read_text(encoding="utf-8")).items())


@pytest.mark.parametrize("folder", OURS, ids=lambda folder: folder.name)
def test_a_plugin_has_the_version_of_the_core(folder: Path, tmp_path: Path):
    assert "version" not in project(folder)
    assert metadata(folder, tmp_path / "found")["Version"] == VERSION


def test_a_source_distribution_keeps_it_where_there_is_no_repository(tmp_path: Path):
    code = "import hatchling.build as b, sys; b.build_sdist(sys.argv[1])"
    folder = ROOT / "plugins" / "implicitcore-scipy"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=folder, check=True, timeout=60)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    [unpacked] = (path for path in tmp_path.iterdir() if path.is_dir())
    assert metadata(unpacked, tmp_path / "found")["Version"] == VERSION


def test_a_copy_without_git_has_it_too(tmp_path: Path):
    """As an archive of the repository, or a clone without tags."""
    plugin = Path("plugins") / "implicitcore-torchdiffeq"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / plugin, tmp_path / plugin)
    assert metadata(tmp_path / plugin, tmp_path / "found")["Version"] == VERSION


def test_the_citation_has_it():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {VERSION}" in lines


@pytest.mark.parametrize("folder", [ROOT, *PLUGINS], ids=lambda folder: folder.name)
def test_the_distributions_here_fit_one_another(folder: Path):
    """And the release after the next minor one is kept out."""
    settings = project(folder)
    extras = settings.get("optional-dependencies", {}).values()
    lines = [line for group in (settings.get("dependencies", []), *extras) for line in group]
    needed = [Requirement(line) for line in lines]
    names = {canonicalize_name(each.name) for each in (ROOT, *OURS)} | {"implicitcore"}
    ranges = [each for each in needed if each.name in names and each.name != settings["name"]]
    assert ranges
    release = Version(VERSION)
    for each in ranges:
        assert each.specifier.contains(VERSION), each
        assert not each.specifier.contains(f"{release.major}.{release.minor + 1}"), each


def test_a_tag_that_says_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT / ".ci")
    wheels = importlib.import_module("wheels")
    wheels.check_tag(tmp_path, VERSION)  # no repository
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "a")):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    wheels.check_tag(tmp_path, VERSION)  # no tag
    subprocess.run([*git, "tag", "v9.9.9"], cwd=tmp_path, check=True)
    with pytest.raises(SystemExit, match=r"the tag v9\.9\.9 .* has the version"):
        wheels.check_tag(tmp_path, VERSION)
    subprocess.run([*git, "tag", f"v{VERSION}"], cwd=tmp_path, check=True)
    wheels.check_tag(tmp_path, VERSION)
