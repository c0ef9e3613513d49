"""Words that the glossary of the design retired do not return as identifiers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sites import ROOT

# Retired wherever they stand in a name, with what is said now.
WORDS = {
    "march": "integrate",
    "begun": "started",
    "lent": "buffer",
    "crowded": "compact_below",
    "handed": "subjects",
    "spoiled": "with_nan",
}
# Retired as whole names: each is an English word that other names may have in them.
NAMES = {
    "Way": "TrajectoryRecorder",
    "Begin": "StepStart",
    "FromInput": "Identity",
    "Learned": "LearnedInitialGuess",
    "FirstUpdate": "OneStep",
    "JointProgress": "SynchronizedStopTest",
    "one_function": "frozen_randomness",
    "gram_row": "inner_products",
    "joint": "synchronized",
    "visited": "record_iterates",
    "estimated": "approximate",
    "schedule": "checkpoints",
    "Slot": "PartType",
    "Reader": "ConfigParser",
    "page": "reference_page",
    "wording": "messages",
    "solves_each_sample_by_itself": "per_sample",
    "treats_each_sample_by_itself": "per_sample",
    "keeps_samples_apart": "per_sample",
    "leaves_its_input_alone": "no_input_mutation",
    "keeps_a_nan_in_its_sample": "nan_isolation",
    "remembers_nothing": "stateless",
}
SOURCES = sorted(
    [*ROOT.glob("implicitcore/**/*.py"), *ROOT.glob("plugins/*/implicitcore_*/**/*.py")]
)


def identifiers(source: str) -> Iterator[str]:
    """Every name that a source defines, binds, reads or passes."""
    for node in ast.walk(ast.parse(source)):
        fields = (getattr(node, field, None) for field in ("id", "attr", "name", "asname", "arg"))
        yield from (name for name in fields if isinstance(name, str))


def retired(source: str, *, learning_rates: bool = False) -> dict[str, str]:
    """The retired identifiers of a source, with what is said now.

    Learning rates have a schedule.
    """
    found = {}
    for name in identifiers(source):
        bare = name.strip("_")
        words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
        for word in words & WORDS.keys():
            found[name] = WORDS[word]
        if bare in NAMES and not (bare == "schedule" and learning_rates):
            found[name] = NAMES[bare]
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_retired_word_returns(file: Path):
    lab = "implicitcore_lab" in file.parts
    assert not retired(file.read_text(encoding="utf-8"), learning_rates=lab)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class March: pass", {"March": "integrate"}),
        ("def _march_on(): pass", {"_march_on": "integrate"}),
        ("x.lent = 1", {"lent": "buffer"}),
        ("f(handed=1)", {"handed": "subjects"}),
        ("from a import b as Way", {"Way": "TrajectoryRecorder"}),
        ("class Highway: pass", {}),
        ("equivalent = program = rejoint = 1", {}),
    ],
)
def test_a_retired_word_is_seen(source: str, found: dict[str, str]):
    assert retired(source) == found
