"""Write build/gpu-bundle.tar.gz: what a GPU machine without network needs to test this tree.

    python .ci/gpu_bundle.py [--python 3.12]

Wheels of our distributions and of what such a machine lacks (torch, CuPy and Triton it has), the
tests for a GPU, the benchmark, and one script, run.sh, which brings back one archive. DEVICE=cpu sh
run.sh tries the bundle where there is no GPU, and with it the kernels in their emulators.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "build" / "gpu-bundle"
OURS = (".", *(f"plugins/implicitcore-{name}" for name in ("cupy", "triton", "lab")))
LACKING = (
    *("annotated-types", "click", "iniconfig", "packaging", "pluggy", "pydantic"),
    *("pydantic_core", "Pygments", "pytest", "pytest-timeout", "PyYAML", "torchdeq"),
    *("typing-inspection", "typing_extensions"),
)
FILES = (
    *("pyproject.toml", "conftest.py", "tests/conftest.py", "tests/support", "tests/benchmarks"),
    *("tests/gpu", "tests/backends/test_launches.py", "docs/benchmarks/launches.md"),
    *(f"plugins/implicitcore-{name}/tests" for name in ("cupy", "triton")),
)
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")


def pip(*arguments: str | Path) -> None:
    """Run pip, quietly."""
    quiet = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, *quiet, *map(str, arguments)], cwd=ROOT, check=True)


def wheels(folder: Path, python: str) -> None:
    """Our wheels and those that the machine lacks, for a version of Python."""
    pip("wheel", "--no-deps", "--wheel-dir", folder, *OURS)
    platforms = [f"--platform=manylinux_{each}_x86_64" for each in PLATFORMS]
    pip(
        *("download", "--no-deps", "--only-binary=:all:", "--python-version", python),
        *("--implementation", "cp", "--platform=manylinux2014_x86_64", *platforms),
        *("--constraint", "constraints.txt", "--dest", folder, *LACKING),
    )


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default="3.12", help="the version on the GPU machine")
    python = parser.parse_args().python
    shutil.rmtree(BUNDLE, ignore_errors=True)
    for name in FILES:
        target = BUNDLE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    shutil.copy(ROOT / ".ci" / "gpu_bundle.sh", BUNDLE / "run.sh")
    wheels(BUNDLE / "wheels", python)
    archive = BUNDLE.with_suffix(".tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        file.add(BUNDLE, BUNDLE.name)
    print(f"{archive}: unpack it there and run sh {BUNDLE.name}/run.sh")


if __name__ == "__main__":
    main()
