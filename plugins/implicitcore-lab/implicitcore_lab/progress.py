"""How far a training is, and everything it goes on from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from implicitcore_lab.engine import like, whole
from implicitcore_lab.errors import RunError
from implicitcore_lab.state import State, random_state, set_random_state

if TYPE_CHECKING:
    from implicitcore_lab.training import Training


@dataclass
class Position:
    """Where a training is.

    Attributes:
        epoch: epochs that are finished.
        batch: steps taken in the present epoch.
        step: steps taken in all.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class Best:
    """The epoch with the best accuracy on the validation images.

    Attributes:
        accuracy: of it.
        epoch: its number; 0 where there was none yet.
        weights: after it.
    """

    accuracy: float = -1.0
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


def capture(training: Training) -> State:
    """The state of a training, whole on every process."""
    state = State({"position": asdict(training.position)})
    state.add("model", _whole(training.model.state_dict()))
    state.add("optimizers", [_whole(each.state_dict()) for each in training.optimizers])
    state.add("random", training.engine.gather(random_state(training.engine.device)))
    state.add("scaler", training.engine.scaler_state())
    best = training.best
    state.data["best"] = {"accuracy": best.accuracy, "epoch": best.epoch}
    state.add("best_weights", _whole(best.weights))
    if training.warm:
        state.add("warm", _whole(training.warm.state_dict()))
    if training.average:
        state.data["average_updates"] = training.average.updates
        state.add("average", _whole(training.average.weights))
    return state


def restore(training: Training, state: State) -> None:
    """Bring a training, built with the same settings, to a state.

    Raises:
        RunError: the state is that of another model, or of another number of processes.
    """
    try:
        _restore(training, state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"the checkpoint is not of these settings ({error!r})") from error


def _restore(training: Training, state: State) -> None:
    randoms = state.get("random")
    if len(randoms) != training.engine.world:
        raise ValueError(f"{len(randoms)} processes wrote it, here are {training.engine.world}")
    _load_model(training, state.get("model"))
    for optimizer, saved in zip(training.optimizers, state.get("optimizers"), strict=True):
        _load_optimizer(optimizer, saved)
    training.engine.load_scaler_state(state.get("scaler"))
    training.position = Position(**state.data["position"])
    weights = state.get("best_weights")
    training.best = Best(**state.data["best"], weights=_placed(training, weights))
    if training.warm:
        training.warm.load_state_dict(state.get("warm"))
    if training.average:
        training.average.updates = state.data["average_updates"]
        training.average.weights = _placed(training, state.get("average"))
    set_random_state(randoms[training.engine.rank], training.engine.device)


@torch.no_grad()
def _load_model(training: Training, saved: dict[str, Tensor]) -> None:
    model = training.model.state_dict(keep_vars=True)
    if model.keys() != saved.keys():
        raise ValueError(f"weights {sorted(model.keys() ^ saved.keys())}")
    for name, value in model.items():
        value.copy_(like(saved[name], value))


def _load_optimizer(optimizer: Any, saved: dict[str, Any]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    placed = {index: _like(parameters[index], values) for index, values in saved["state"].items()}
    optimizer.load_state_dict({**saved, "state": placed})


def _like(parameter: Tensor, values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: like(value, parameter) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def _placed(training: Training, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    model = training.model.state_dict()
    return {name: like(value, model[name]).clone() for name, value in weights.items()}


def _whole(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return whole(tree)
    if isinstance(tree, dict):
        return {key: _whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_whole(value) for value in tree]
    return tree
