"""The language table's two tasks, and the augmented table's models."""

import math

import pytest
import torch

from implicitcore_lab.papers import augmented, language


def test_a_window_is_read_back_from_its_bits():
    data = language._windows()
    bits, labels = language._batch(data.train, torch.tensor([0, 5]))
    powers = 2 ** torch.arange(7, -1, -1)
    own = ((bits > 0) * powers).sum(2)
    assert torch.equal(labels[:, :-1], own[:, 1:])
    assert torch.equal(labels[:, -1], data.train.labels[[0, 5]])
    assert bytes(own[0].tolist()).decode().startswith("# ")


def test_sorting_is_to_be_read_off_what_came_before():
    symbols, ordered = language._numbers(torch.Generator().manual_seed(0), 5)
    numbers = symbols.argmax(2)
    assert torch.equal(numbers[:, : language.LENGTH].sort(1).values, ordered)
    assert set(numbers[:, language.LENGTH].tolist()) == {language.NUMBERS}
    assert torch.equal(numbers[:, language.LENGTH + 1 :], ordered[:, :-1])


@pytest.mark.parametrize("name", ["explicit", "equilibrium"])
@pytest.mark.slow
def test_a_character_model_begins_near_eight_bits_and_learns(name):
    few, more = (language._text(name, 0, steps) for steps in (1, 25))
    assert few["parameters"] == more["parameters"] == 43_216
    assert more["bits"] < few["bits"] - 1
    assert more["bits"] < math.log2(language.BYTES) - 2
    assert (more["evaluations"] > 1) == (name == "equilibrium")


@pytest.mark.slow
def test_both_have_as_many_parameters_and_the_depths_are_told():
    once, deep = (language._sorting(name, 0, 2) for name in ("explicit", "equilibrium"))
    assert list(once) == ["sorted_1"]
    assert list(deep) == [f"sorted_{depth}" for depth in language.DEPTHS]
    told = language.Language().verdict(
        {
            "explicit": [{"bits": 3.0}],
            "equilibrium": [{"bits": 2.5, "sorted_8": 90, "sorted_64": 50}],
        }
    )
    assert told[0].startswith("The equilibrium spends 0.500 fewer bits")
    assert told[1].startswith("Depth does NOT generalise: at 64 iterations, 8 times")


def test_the_points_are_of_two_classes_that_no_line_separates():
    x, labels = augmented.points(torch.Generator().manual_seed(0), 400)
    radius = x.norm(dim=1)
    assert radius[labels == 0].max() <= augmented.INNER
    low, high = augmented.RING
    assert low <= radius[labels == 1].min() <= radius[labels == 1].max() <= high


@pytest.mark.parametrize("name", ["neural-ode", "augmented", "held", "deq"])
def test_each_model_trains_and_is_measured(name):
    before, after = (augmented._measure(name, 0, steps) for steps in (0, 15))
    assert (after["loss"] or 0) < (before["loss"] or 0)
    distance = after["distance"]
    assert (distance is None) == (name in ("neural-ode", "augmented"))
    if distance is not None:  # e^-3 of the way is left where f does not depend on a
        assert distance < (1e-3 if name == "deq" else 0.5)


def test_a_difference_within_the_deviation_is_told_to_be_none():
    once, deep = [{"bits": 2.4}, {"bits": 2.3}], [{"bits": 2.2}, {"bits": 2.45}]
    told = language.Language().verdict({"explicit": once, "equilibrium": deep})
    assert "less than the deviation over the seeds: no difference is shown" in told[0]
    apart = language.Language().verdict({"explicit": once, "equilibrium": [{"bits": 1.0}] * 2})
    assert apart[0].endswith("(1.000 and 2.350).")
