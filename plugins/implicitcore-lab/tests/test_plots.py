"""The picture of a comparison: every seed is in it, and its ticks can be read."""

from typing import Any

import pytest

from implicitcore_lab.axes import scale
from implicitcore_lab.experiment import Outcome
from implicitcore_lab.plots import compared
from implicitcore_lab.records import Epoch, Evaluation, History


def outcome(layer: str, seed: int, accuracies: list[float], seconds: float) -> Outcome:
    epochs = [
        Epoch(
            epoch=number,
            seconds=seconds * number,
            loss=1.0,
            train_accuracy=0.5,
            test_accuracy=accuracy,
            evaluations=1.0,
            backward=1.0,
            unconverged=0,
        )
        for number, accuracy in enumerate(accuracies, 1)
    ]
    return Outcome(
        layer=layer,
        seed=seed,
        config={},
        parameters=1,
        history=History(epochs=epochs),
        test=Evaluation(1, 2, None, 0),
        peak_bytes=1,
        residuals=[] if layer == "homoode" else [1.0, 0.1 / (seed + 1)],
    )


GROUPS = [
    [outcome("deq", 0, [0.5, 0.8], 1.0), outcome("deq", 1, [0.7, 0.6], 3.0)],
    [outcome("homoode", 0, [0.4], 40.0), outcome("homoode", 1, [0.4, 0.9], 40.0)],
]


def test_a_line_is_the_mean_over_the_seeds_with_their_spread():
    drawn: Any = compared(GROUPS, "title").axes
    left, right = drawn
    deq, homoode = left.lines
    assert list(deq.get_xdata()) == [2.0, 4.0]
    assert list(deq.get_ydata()) == pytest.approx([0.6, 0.7])
    assert list(homoode.get_ydata()) == [0.4, 0.9]  # of the seeds that reached the epoch
    [band] = left.collections
    around = band.get_paths()[0].vertices[:, 1]
    assert around.min() == pytest.approx(0.6 - 0.02**0.5)
    assert [list(line.get_ydata()) for line in right.lines] == [[1.0, 0.1], [1.0, 0.05]]
    assert "2 seeds" in left.get_xlabel()
    assert "homoode" in right.get_xlabel()
    for axes, labels in ((left, ["deq", "homoode"]), (right, ["deq"])):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == labels


def test_one_seed_has_no_band():
    left, _ = compared([[GROUPS[0][0]]], "title").axes
    assert not left.collections
    assert "seeds" not in left.get_xlabel()


@pytest.mark.parametrize("factor", [1.05, 1.7, 5.0, 30.0, 1e4])
@pytest.mark.parametrize("seconds", [0.0137, 1.3, 250.0])
def test_every_axis_has_ticks_that_say_their_place(factor: float, seconds: float):
    groups = [
        [outcome("deq", 0, [0.5, 0.6], seconds)],
        [outcome("other", 0, [0.5, 0.6], seconds * factor)],
    ]
    figure = compared(groups, "title")
    figure.draw_without_rendering()
    axis, (low, high) = figure.axes[0].xaxis, figure.axes[0].get_xlim()
    pairs = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    shown = [(at, label.get_text()) for at, label in pairs if low <= at <= high]
    assert len(shown) > 1
    for at, text in shown:
        assert float(text.replace("\N{MINUS SIGN}", "-")) == pytest.approx(at)


def test_a_scale_of_nothing_stays_linear():
    axes = compared([[GROUPS[0][0]]], "title").axes[0]
    scale(axes.set_xscale, axes.xaxis, [])
    assert axes.get_xscale() == "linear"
