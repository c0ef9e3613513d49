"""The suite for a machine with an NVIDIA GPU (``make test-gpu``); elsewhere all of it is
skipped."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.registry.registry import REGISTRY


@pytest.fixture(autouse=True)
def _needs_cuda():
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} finds no CUDA device")


def _backend(name: str) -> ic.Backend:
    if not any(part.name == name for part in REGISTRY.parts("backend")):
        pytest.skip(f"implicitcore-{name} is not installed")
    backend = ic.create("backend", name)
    reason = backend.unavailable_reason()
    if reason:
        pytest.skip(reason)
    return backend


@pytest.fixture(params=["cupy", "triton"])
def fused(request):
    """Each backend with kernels of its own."""
    return _backend(request.param)


@pytest.fixture(params=["torch", "cupy", "triton"])
def backend(request):
    return _backend(request.param)
