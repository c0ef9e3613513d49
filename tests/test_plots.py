"""Pictures of solves: what is drawn is what was given."""

from __future__ import annotations

import pytest
import torch
from support.sites import run_python

import implicitcore as ic
from implicitcore import plots


@pytest.fixture
def ax():
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    return figure.Figure().subplots()


def test_residuals_are_quantiles(ax):
    trace = torch.tensor([[1.0, 2.0, 3.0], [0.1, 0.2, 0.3]])
    assert plots.residuals(trace, quantiles=(0.0, 0.5, 1.0), ax=ax) is ax
    assert [list(line.get_ydata()) for line in ax.lines] == [
        pytest.approx([1.0, 0.1]),
        pytest.approx([2.0, 0.2]),
        pytest.approx([3.0, 0.3]),
    ]
    assert ax.get_yscale() == "log" and "0%, 50%, 100%" in ax.get_title()


def test_residuals_of_a_layer_that_converges_exactly(ax):
    layer = ic.build("deq", lambda z, x: x + 0 * z)
    solution = layer.solve(torch.ones(3, 2), trace=True)
    assert isinstance(solution, ic.Solution) and solution.trace is not None
    plots.residuals(solution.trace, ax=ax)
    assert len(ax.lines) == 5


@pytest.mark.parametrize("whole", [True, False])
def test_evaluations_count_every_sample(ax, whole):
    solution = ic.fixed_point(
        lambda z, x: x * z + 1, torch.zeros(3, 1), torch.tensor([[0.1], [0.5], [0.5]])
    )
    plots.evaluations(solution if whole else solution.steps, ax=ax)
    assert sum(patch.get_height() for patch in ax.patches) == 3


def test_radii_are_in_order_beside_one(ax):
    plots.spectral_radii(torch.tensor([1.3, 0.2, 0.9]), ax=ax)
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0.2, 0.9, 1.3])
    assert "33% above 1" in ax.get_title()


def test_step_sizes_leave_out_samples_at_rest(ax):
    sizes = torch.tensor([[0.1, 0.2], [0.3, 0.0]])
    plots.step_sizes(torch.tensor([[0.0, 0.0], [0.1, 0.2]]), sizes, ax=ax)
    assert [len(line.get_ydata()) for line in ax.lines] == [2, 1]
    with pytest.raises(ic.InputError, match=r"times: received shape \[1, 2\]"):
        plots.step_sizes(torch.zeros(1, 2), sizes, ax=ax)


@pytest.mark.parametrize("n", [2, 5])
def test_the_path_of_a_portrait_is_in_its_plane(ax, n):
    path = torch.randn(4, n, generator=torch.Generator().manual_seed(0)).cumsum(0)
    seen = []

    def velocity(z):
        seen.append(z)
        return path[-1] - z

    plots.phase_portrait(velocity, path, ax=ax)
    assert seen[0].shape == (400, n) and seen[0].dtype == path.dtype
    assert len(ax.lines[0].get_xdata()) == 4
    if n == 2:
        assert list(ax.lines[0].get_xdata()) == pytest.approx(path[:, 0].tolist())
        assert ax.get_xlabel() == "z[0]"
    assert ax.collections  # the field


def test_a_portrait_of_a_state_that_stands_still(ax):
    plots.phase_portrait(torch.zeros_like, torch.zeros(1, 3), ax=ax)
    with pytest.raises(ic.InputError, match="n of at least 2"):
        plots.phase_portrait(torch.zeros_like, torch.zeros(4, 1), ax=ax)


def test_errors_and_distances(ax):
    plots.gradient_errors(torch.tensor([1e-2, 1e-4]), ax=ax)
    assert list(ax.lines[0].get_ydata()) == pytest.approx([1e-4, 1e-2])
    plots.start_distances(torch.tensor([0.0, 1.0, 1.0]), ax=ax)
    assert sum(patch.get_height() for patch in ax.patches) == 3


@pytest.mark.parametrize("draw", [plots.residuals, plots.evaluations, plots.spectral_radii])
def test_a_wrong_shape_is_an_error(draw, ax):
    with pytest.raises(ic.InputError, match=r"received \[2, 3, 4\], expected a tensor"):
        draw(torch.zeros(2, 3, 4), ax=ax)


def test_without_matplotlib_one_error_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
import torch
from implicitcore import plots
plots.spectral_radii(torch.ones(2))
"""
    done = run_python("-c", code)
    assert "plots need matplotlib: pip install matplotlib" in done.stderr
