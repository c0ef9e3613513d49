"""The state of a training as one file: tensors and JSON, no pickle, named by its own digest.

``checkpoint-00000120-<first 16 hexadecimal digits of its SHA-256>.safetensors``
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from implicitcore_lab.errors import RunError
from implicitcore_lab.storage import digest, write_atomic

SCHEMA = 1
"""The version of the files of a run; another one is refused."""

PATTERN = "checkpoint-*.safetensors"
KEPT = 2
DIGITS = 16


@dataclass
class State:
    """Everything that a training goes on from.

    Attributes:
        data: positions and settings, as JSON has them.
        tensors: by name.
    """

    data: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, tree: Any) -> None:
        """Add a tree of dicts and lists of tensors and plain values, under a name."""
        self.data[name] = self._without_tensors(tree, name)

    def get(self, name: str) -> Any:
        """The tree that was added under that name."""
        return self._with_tensors(self.data[name])

    def _without_tensors(self, tree: Any, path: str) -> Any:
        if isinstance(tree, Tensor):
            self.tensors[path] = tree.contiguous()
            return {"tensor": path}
        if isinstance(tree, dict):
            items = [
                [key, self._without_tensors(value, f"{path}.{key}")] for key, value in tree.items()
            ]
            return {"items": items}  # the keys of an optimiser's state are numbers
        if isinstance(tree, list | tuple):
            return [
                self._without_tensors(value, f"{path}.{index}") for index, value in enumerate(tree)
            ]
        return tree

    def _with_tensors(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self._with_tensors(value) for value in tree]
        if not isinstance(tree, dict):
            return tree
        if "tensor" in tree:
            return self.tensors[tree["tensor"]]
        return {key: self._with_tensors(value) for key, value in tree["items"]}


def write_state(folder: Path, step: int, state: State) -> Path:
    """Write a checkpoint beside the last one, and drop those before.

    Arguments:
        folder: of the run.
        step: how many steps have been taken.
        state: what to write.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written; the checkpoints before it are as they were.
    """
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    content = save(tensors, {"state": json.dumps({"schema": SCHEMA, "data": state.data})})
    path = folder / f"checkpoint-{step:08d}-{digest(content)[:DIGITS]}.safetensors"
    write_atomic(path, content)
    for old in [other for other in checkpoints(folder) if other != path][KEPT - 1 :]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    return sorted(folder.glob(PATTERN), reverse=True)


def read_state(path: Path) -> State:
    """Read a checkpoint.

    Raises:
        RunError: it is damaged, or of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    if digest(content)[:DIGITS] != path.stem.rpartition("-")[2]:
        raise RunError(f"{path}: damaged, its SHA-256 is not the one in its name")
    try:
        with safe_open(path, "pt") as file:
            head = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a checkpoint of implicitcore train ({error!r})") from error
    check_schema(head.get("schema"), path)
    return State(head["data"], tensors)


def check_schema(found: Any, path: Path) -> None:
    """Require the version of files that this lab reads.

    Raises:
        RunError: it is another one.
    """
    if found != SCHEMA:
        raise RunError(
            f"{path}: its files have the schema version {found!r}; this implicitcore-lab reads "
            f"version {SCHEMA}"
        )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Give torch's generators the state that :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
