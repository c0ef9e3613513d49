"""``implicitcore bench backend``: what it measures, what it says of the rest."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from support.sites import Site, hook, run_python

import implicitcore as ic
from implicitcore.backends import measure

BACKENDS = """
from implicitcore import TorchBackend
from implicitcore.extend import FusedBackend
import torch

class Mine(FusedBackend):
    device_types, dtypes = ("cpu",), (torch.float32,)
    reason = None
    def unavailable_reason(self): return self.reason
    def _residual(self, fz, z, out): return TorchBackend().residual(fz, z, out)
    def _inner_products(self, history, row): return TorchBackend().inner_products(history, row)
    def _axpy_history(self, row, weights, history, scale, out):
        return out.copy_(TorchBackend().axpy_history(row, weights, history, scale))
    def _stage_combination(self, *rest): return TorchBackend().stage_combination(*rest)
    def _error_norm(self, *rest): return TorchBackend().error_norm(*rest)

class Elsewhere(Mine):
    device_types = ("xpu",)

class Absent(Mine):
    reason = "no driver"
"""
KERNELS = [
    "residual",
    "inner_products",
    "axpy_history",
    "broyden",
    "stage_combination",
    "error_norm",
]
NO_TORCH = "import sys; sys.modules['torch'] = None; from implicitcore.cli import main; main()"


@pytest.fixture
def backends(tmp_path) -> Site:
    """A backend that can run, one for another device, one that cannot run and one that cannot be
    imported."""
    targets = {"mine": "Mine", "elsewhere": "Elsewhere", "absent": "Absent", "broken": "NoSuch"}
    lines = [
        f"registry.register('backend', {name!r}, 'mine_code:{target}', summary='a test')"
        for name, target in targets.items()
    ]
    site = Site(tmp_path)
    site.add("mine-dist", hook("\n    ".join(lines)), files={"mine_code.py": BACKENDS})
    return site


def bench(*options: str, **more):
    return run_python("-m", "implicitcore", "bench", "backend", *options, **more)


def test_the_backends_that_can_run_are_measured_and_the_others_say_why(backends, tmp_path):
    path = tmp_path / "found.json"
    done = bench(
        "--quick",
        "--dtype",
        "float32",
        "--dtype",
        "float64",
        "--json",
        str(path),
        path=(backends,),
        CUDA_VISIBLE_DEVICES="",
        IMPLICITCORE_DISABLE_PLUGINS="implicitcore-cpp",  # which is built on some machines
    )
    assert (done.returncode, done.stderr) == (0, "")
    *rows, about = json.loads(path.read_text())
    found = [(row["dtype"], row["kernel"], row["backend"]) for row in rows]
    expected = [("float32", kernel, name) for kernel in KERNELS for name in ("torch", "mine")]
    assert found == expected + [("float64", kernel, "torch") for kernel in KERNELS], (
        "a backend is measured on its own dtypes"
    )
    assert all(row["faster"] == 1 for row in rows if row["backend"] == "torch")
    assert about["not_measured"]["absent"] == "no driver"
    assert about["not_measured"]["elsewhere"] == "it runs on xpu, not on cpu"
    assert "module mine_code has no 'NoSuch'" in about["not_measured"]["broken"]
    assert "\nabsent was not measured: no driver\n" in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["KERNEL", "STATE", "DTYPE"]
    assert sum(line.startswith(tuple(KERNELS)) for line in lines) == len(rows)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--shape", "3"), 2, "'3' is not two numbers above zero, BATCHxN, such as 32x128"),
        (("--device", "cuda"), 1, "finds no CUDA device"),
        (("--dtype", "float16"), 2, "'float16' is not one of"),
    ],
)
def test_what_cannot_be_measured_is_a_message(options, status, message):
    done = bench(*options, IMPLICITCORE_DISABLE_PLUGINS="all", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_its_help_needs_no_torch():
    done = run_python("-c", NO_TORCH, "bench", "backend", "--help")
    assert done.returncode == 0, done.stderr
    assert "32x128, 256x1024" in done.stdout


def plan(**options):
    return measure.Plan(
        torch.device("cpu"),
        [(2, 5)],
        [torch.float32],
        **{"repetitions": 2, "window": 0.0, **options},
    )


def test_the_figures_of_a_row(monkeypatch):
    monkeypatch.setattr(
        measure,
        "interleave",
        lambda works, plan: {name: 1e-6 * (1 + place) for place, name in enumerate(works)},
    )
    rows = {
        (row.kernel, row.backend): row
        for row in measure.measure({"twin": ic.TorchBackend()}, plan())
    }
    twin = rows["stage_combination", "twin"]
    assert twin == measure.Measured(
        "stage_combination",
        "twin",
        2,
        5,
        "float32",
        2e-6,
        pytest.approx((6 + 2) * 40 / 2e-6 / 1e9),  # pyright: ignore[reportArgumentType]
        0.5,
    )
    assert rows["broyden", "torch"].gigabytes_per_second == pytest.approx(19 * 40 / 1e-6 / 1e9)


def test_each_repetition_times_every_work():
    calls = {"a": 0, "b": 0}

    def work(name):
        calls[name] += 1

    seconds = measure.interleave(
        {name: lambda name=name: work(name) for name in calls}, plan(repetitions=5)
    )
    assert seconds.keys() == calls.keys()
    assert calls == {"a": 2 + 5, "b": 2 + 5}, (
        "the first warms up, the second tells how many fill the window"
    )


def test_what_is_compiled_computes_the_same(monkeypatch):
    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend="eager")
    )  # needs no C++ compiler
    case = measure.cases(2, 5, torch.float32, torch.device("cpu"))["stage_combination"]
    with torch.no_grad():
        found, expected = measure._compiled(case)(), case.run(ic.TorchBackend())
        assert isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor)
        assert torch.allclose(found, expected, rtol=1e-6)
