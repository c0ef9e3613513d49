"""The options that every benchmark program has."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_shared(parser: argparse.ArgumentParser, repetitions: int, unsaved: str = "") -> None:
    """How often and with what it runs, and where its results go.

    Arguments:
        parser: of the program.
        repetitions: the default.
        unsaved: when nothing is saved, said after the default folder.
    """
    default = "(default %(default)s)"
    parser.add_argument(
        "--repetitions",
        type=int,
        default=repetitions,
        help=f"interleaved repetitions {default}",
    )
    parser.add_argument("--threads", type=int, default=2, help=f"threads of torch {default}")
    parser.add_argument(
        "--output", type=Path, help=f"folder to save in (default docs/benchmarks{unsaved})"
    )
