"""Trainings in several processes, started as ``torchrun`` starts them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from faults.lab import Around, Command


def launch(words: Sequence[object], folder: Path, world: int = 2) -> list[Command]:
    """Start the processes of a training; each writes ``log-RANK`` and ``counts-RANK``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        Command(
            *words,
            around=Around(
                log=folder / f"log-{rank}",
                environment=_environment(rank, world, port),
                counts=folder / f"counts-{rank}",
            ),
        )
        for rank in range(world)
    ]


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
    }
    return {name: str(value) for name, value in values.items()}
