"""Tuning on the convolutional problem of the benchmarks."""

import pytest
import torch
from benchmarks.root_problems import CONV, problems

from implicitcore.testing.expect import known
from implicitcore_lab import tune


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_default_is_beaten_at_equal_gradient_error(one_thread):
    (problem,) = [it for it in problems() if it.name == CONV]
    found = tune(
        "deq", problem.x, problem.f, loss=lambda it: (it.z * problem.v).sum(), trials=6, repeats=5
    )
    best, default = known(found.best.measured), known(found.default.measured)
    assert best.gradient_error <= default.gradient_error < 1e-4
    assert found.speedup >= 1.3
