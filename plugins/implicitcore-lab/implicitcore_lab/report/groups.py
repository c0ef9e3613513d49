"""Runs that differ by their seed alone, and what tells such groups apart."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from implicitcore_lab.errors import RunError
from implicitcore_lab.report.reading import Run
from implicitcore_lab.settings import RUN_ONLY

LONGEST = 60
"""Characters of a label."""


@dataclass(frozen=True)
class Group:
    """Runs of one layer with the same settings.

    Attributes:
        label: its name in tables and figures, different for each group.
        runs: one for each seed, in the order of the seeds.
        options: settings and the layer's configuration, flat: ``layer.root_solver.tol``.
    """

    label: str
    runs: Sequence[Run]
    options: Mapping[str, Any]

    def seeds(self) -> str:
        """The seeds, as one text."""
        return ", ".join(str(run.record.seed) for run in self.runs)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ by their seed alone.

    Arguments:
        runs: in any order.

    Returns:
        The groups, in the order in which the first run of each comes.

    Raises:
        RunError: two runs have the same settings and the same seed.
    """
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[json.dumps(_options(run), sort_keys=True, default=str)].append(run)
    members = [sorted(each, key=lambda run: run.record.seed) for each in found.values()]
    for each in members:
        _check_seeds(each)
    options = [_options(each[0]) for each in members]
    labels = _labels([each[0].record.layer for each in members], options)
    return [
        Group(label, each, flat) for label, each, flat in zip(labels, members, options, strict=True)
    ]


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the options that are not the same in all."""
    names = {name: None for each in options for name in each}
    return [name for name in names if len({text(each.get(name)) for each in options}) > 1]


def text(value: Any) -> str:
    """A setting as a reader sees it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _options(run: Run) -> dict[str, Any]:
    settings = {name: value for name, value in run.settings.items() if name not in RUN_ONLY}
    return _flat("", settings) | _flat("layer.", run.record.config)


def _flat(path: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _flat(f"{path}{name}.", value)
        else:
            found[f"{path}{name}"] = value
    return found


def _check_seeds(runs: Sequence[Run]) -> None:
    for before, run in zip(runs, runs[1:], strict=False):
        if before.record.seed == run.record.seed:
            raise RunError(
                f"{before.place} and {run.place}: {run.record.layer} with the same settings and "
                f"the same seed {run.record.seed}; a mean would count one run twice"
            )


def _labels(layers: Sequence[str], options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of the layer, with what tells it from others of the same name."""
    counts, labels = Counter(layers), []
    for index, layer in enumerate(layers):
        if counts[layer] == 1:
            labels.append(layer)
            continue
        rivals = [each for name, each in zip(layers, options, strict=True) if name == layer]
        named = [
            f"{name.removeprefix('layer.')} {text(options[index].get(name))}"
            for name in differing(rivals)
        ]
        label = f"{layer}, {', '.join(named)}"
        number = layers[: index + 1].count(layer)
        labels.append(label if len(label) <= LONGEST else f"{layer}, settings {number}")
    repeated = {label for label, count in Counter(labels).items() if count > 1}
    return [
        f"{label} ({index + 1})" if label in repeated else label
        for index, label in enumerate(labels)
    ]
