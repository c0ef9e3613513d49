"""What needs no kernel: the registration, and why the backend cannot run."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore_triton import backend

IMPORTS = (
    "import sys; sys.modules['torch'] = sys.modules['triton'] = None; import "
    "implicitcore_triton.plugin"
)
AUTO = """
import implicitcore as ic
from implicitcore_triton import TritonBackend
assert not isinstance(ic.create("backend", "auto"), TritonBackend)
print(ic.create("backend", {"name": "triton", "interpret": True}).unavailable_reason())
"""


@pytest.fixture(autouse=True)
def _forget():
    backend._reason.cache_clear()
    yield
    backend._reason.cache_clear()


@pytest.fixture
def cuda(monkeypatch):
    """As if a CUDA build of torch had found a GPU."""
    monkeypatch.setattr(backend, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)


def test_the_plugin_needs_neither_torch_nor_triton(run_python):
    assert run_python("-c", IMPORTS).returncode == 0


def test_it_is_registered():
    assert isinstance(ic.create("backend", "triton"), backend.TritonBackend)


@pytest.mark.extras
def test_auto_takes_no_interpreter(run_python, needs_triton):
    done = run_python("-c", AUTO, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert done.stdout == "None\n", done.stderr


def test_it_runs_where_there_is_a_device(cuda):
    assert ic.create("backend", "triton").unavailable_reason() is None


def no_driver():
    raise RuntimeError("Found no NVIDIA driver on your system.\nMore.")


@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        ({(backend, "find_spec"): lambda name: None}, "the package triton is not installed"),
        (
            {
                (torch.cuda, "is_available"): lambda: False,
                (torch.backends.cuda, "is_built"): lambda: False,
            },
            "is not a CUDA build",
        ),
        (
            {(torch.cuda, "is_available"): lambda: False, (torch.cuda, "init"): no_driver},
            "Found no NVIDIA driver on your system;",
        ),
        (
            {(torch.cuda, "is_available"): lambda: False, (torch.cuda, "init"): lambda: None},
            "torch finds no CUDA device",
        ),
    ],
)
def test_it_says_what_is_missing(cuda, monkeypatch, absent, reason):
    for (module, name), value in absent.items():
        monkeypatch.setattr(module, name, value)
    with pytest.raises(ic.ConfigError, match=f"backend: TritonBackend cannot run here: .*{reason}"):
        ic.fixed_point(
            lambda z, x: torch.cos(z), torch.zeros(2, 3), None, backend=backend.TritonBackend()
        )


def test_the_interpreter_must_be_asked_for_in_time(cuda):
    assert (
        backend._reason(True, False)
        == "interpret needs the variable TRITON_INTERPRET=1, set before Triton is imported"
    )
    assert str(backend._reason(False, True)).startswith("TRITON_INTERPRET is set")
    assert backend._reason(True, True) is None
