"""The full product of what this repository registers: each combination trains one step, or is
refused with a reason.

Each pair of parts that can meet, in a sample of the product, and the product of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import astuple
from functools import cache

import pytest
from support.product import Combination, can_run, combinations, in_one_layer, pairwise, train
from support.sites import distributions

CORE = {"implicitcore", "implicitcore-layers"}
REASONS = ("GradientError: ", "InputError: ", "SolveError: ", "ConfigError: backend")
"""How a refusal may begin. Any other configuration that is refused is a mistake of this test."""

LOW_ORDER = ("fehlberg2", "adaptive_heun")
"""Methods that may run out of steps at a loose tolerance, and say so: Fehlberg's of order 2, whose
error estimate is blind to its instability, and Heun's."""

SLICES = 4
"""Tests that the pairs are spread over, so that processes share them."""


def solvable(combination: Combination) -> bool:
    """All but Kvaerno5 with SciPy's Anderson, which does not solve its stages.

    Every step is refused then; the solve ends at its limit, or the adjoint warns.
    """
    names = (combination.solver.split(":")[-1], combination.inner.split(":")[-1])
    return names != ("kvaerno5", "scipy-anderson")


@pytest.fixture
def outcomes(
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str, Iterable[Combination]], Counter[str]]:
    """How many combinations train (no reason), and how many are refused for which reason: printed,
    and checked."""

    def run(name: str, chosen: Iterable[Combination]) -> Counter[str]:
        found: Counter[str] = Counter()
        unsolved: list[str] = []
        for combination in filter(solvable, chosen):
            try:
                reason = train(combination)
                found[reason] += 1
                if reason.startswith("SolveError"):
                    unsolved.append(str(combination))
            except Exception as error:
                error.add_note(str(combination))
                raise
        trained = found.pop("", 0)
        with capsys.disabled():
            print(
                f"\n{name}: {trained} of {trained + found.total()} combinations train, "
                f"{found.total()} are refused"
            )
            print(*(f"{count:6}  {reason}" for reason, count in found.most_common()), sep="\n")
        assert all(reason.startswith(REASONS) for reason in found)
        assert [text for text in unsolved if not any(name in text for name in LOW_ORDER)] == []
        return found + Counter(trained=trained)

    return run


OWN = "GradientError: ReversibleGradient takes the steps of Reversible back"
"""The refusals of a strategy that is for one solver."""


def share(found: Counter[str]) -> float:
    """The share that trains, of those whose backend can run here and whose gradient is for all."""
    own = sum(count for reason, count in found.items() if reason.startswith(OWN))
    return found["trained"] / (found.total() - found["ConfigError: backend"] - own)


@cache
def registered() -> list[Combination]:
    """All combinations."""
    return list(combinations(distributions()))


@pytest.mark.slow
@pytest.mark.parametrize("slice_", range(SLICES))
def test_each_pair_of_parts(outcomes, slice_):
    chosen = pairwise(registered())
    assert 0 < len(chosen) < len(registered()) / 2
    found = outcomes(f"pairs of parts, {slice_ + 1} of {SLICES}", chosen[slice_::SLICES])
    assert share(found) > 0.3


def of_its_own_class(combination: Combination) -> bool:
    """Layers that differ from another by their start alone meet each part in the pairs above."""
    return not any(word in combination.layer for word in ("multiscale", "augmented"))


def at_rest(combination: Combination) -> bool:
    """What keeps the energy is to come to rest: always refused."""
    return combination.separable and bool(combination.inner)


@pytest.mark.slow
def test_what_keeps_the_energy_does_not_come_to_rest(outcomes):
    chosen = filter(at_rest, filter(of_its_own_class, registered()))
    found = outcomes("solvers that keep the energy, to rest", chosen)
    assert found.total() > 0 and found["trained"] == 0


def is_built_in(combination: Combination) -> bool:
    """Whether all its parts are the core's, or the layers'."""
    parts = filter(None, astuple(combination))
    return all(part.partition(":")[0] in CORE for part in parts)


@cache
def everything() -> list[Combination]:
    """All others that can run here, in one order.

    The pairs above have each part with a backend that cannot.
    """
    found = filter(of_its_own_class, registered())
    return in_one_layer(each for each in found if can_run(each.backend) and not at_rest(each))


@pytest.mark.slow(60)
@pytest.mark.timeout(1800)
def test_all_of_the_built_in_parts(outcomes):
    assert share(outcomes("built-in parts", filter(is_built_in, everything()))) > 0.5


OTHERS = 7
"""Tests that the rest is spread over: a number that no number of parts is a multiple of, so that
each has as much of every part."""


@pytest.mark.slow(20)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("slice_", range(OTHERS))
def test_all_with_parts_of_plugins(outcomes, slice_):
    others = [each for each in everything() if not is_built_in(each)]
    name = f"with parts of plugins, {slice_ + 1} of {OTHERS}"
    assert share(outcomes(name, others[slice_::OTHERS])) > 0.4
