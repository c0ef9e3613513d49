"""The script of the GPU bundle, with a Python that does not do what it is asked for: whatever
happens, an archive comes back in time."""

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "gpu_bundle.sh"
PYTHON = """#!/bin/sh
case "$*" in
    *"-m pip"*) mkdir -p site ;;
    *"-m implicitcore plugins doctor"*) echo all is well ;;
    *gpu_launches*) echo a line of the counts; sleep 60 & wait ;;
    *torch.cuda*) exit {finds} ;;
    *) echo broken; exit 3 ;;
esac
"""


@pytest.fixture
def bundle(tmp_path):
    def run(*steps, finds=0, budget="8"):
        (tmp_path / "run.sh").write_text(SCRIPT.read_text())
        (tmp_path / "wheels").mkdir(exist_ok=True)
        (tmp_path / "wheels" / "one.whl").touch()
        python = tmp_path / "python"
        python.write_text(PYTHON.format(finds=finds))
        python.chmod(0o755)
        environment = os.environ | {"PYTHON": str(python), "BUDGET": budget}
        done = subprocess.run(
            ["sh", str(tmp_path / "run.sh"), *steps],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        with tarfile.open(tmp_path / "results.tar.gz") as archive:
            found = archive.extractfile("results/summary")
            assert found is not None
            return done.returncode, found.read().decode().splitlines(), archive.getnames()

    return run


@pytest.mark.slow(10)
def test_a_step_that_fails_or_hangs_costs_no_archive(bundle):
    began = time.monotonic()
    status, summary, names = bundle()
    assert time.monotonic() - began < 30
    assert status == 1
    assert summary[0].endswith("all is well")
    assert summary[1].startswith("kernels: exit status 3, ") and summary[1].endswith("broken")
    assert summary[2].startswith("counts: exit status 124, ")
    assert summary[2].endswith("a line of the counts")
    assert summary[3:-1] == [
        f"{name}: not run, no time was left"
        for name in ("gpu", "triton", "backends", "benchmark", "launches")
    ]
    assert {"results/kernels.log", "results/counts.log"} <= set(names)


def test_steps_are_run_one_by_one_and_keep_the_results_of_others(bundle):
    assert bundle("doctor")[0] == 0
    status, summary, names = bundle("kernels", budget="60")
    assert status == 1
    assert [line.partition(":")[0] for line in summary if ":" in line] == ["doctor", "kernels"]
    assert {"results/doctor.log", "results/kernels.log"} <= set(names)


def test_without_a_gpu_the_status_says_so(bundle):
    status, summary, _ = bundle("doctor", finds=1)
    assert status == 2
    assert summary[0].startswith("NO GPU")
