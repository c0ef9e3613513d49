"""Optimisers over parameter groups by role, schedules, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from implicitcore import ImplicitLayer
from implicitcore_lab.settings import Settings

START = "start"
OTHERS = "model"


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters of a model by role.

    Each implicit layer in it says the roles of its own (``layer.parameter_groups()``); all others
    have the role ``model``. A parameter is in one group, the first that names it.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()

    def add(role: str, parameters: Any) -> None:
        fresh = [p for p in dict.fromkeys(parameters) if p.requires_grad and p not in seen]
        seen.update(fresh)
        if fresh:
            groups.setdefault(role, []).extend(fresh)

    for layer in (module for module in model.modules() if isinstance(module, ImplicitLayer)):
        for group in layer.parameter_groups():
            add(group["role"], group["params"])
    add(OTHERS, model.parameters())
    return [{"role": role, "params": parameters} for role, parameters in groups.items()]


def build_optimizers(model: nn.Module, settings: Settings) -> list[Optimizer]:
    """The optimiser of the settings, and after it the one of the start where there is one.

    A start has no weight decay: it is a point, not a map.
    """
    groups = parameter_groups(model)
    for group in groups:
        group["weight_decay"] = 0.0 if group["role"] == START else settings.weight_decay
    if settings.start_optimizer is None:
        return [_optimizer(settings.optimizer, groups, settings.learning_rate, settings)]
    start = [group for group in groups if group["role"] == START]
    others = [group for group in groups if group["role"] != START]
    first = _optimizer(settings.optimizer, others, settings.learning_rate, settings)
    if not start:
        return [first]
    rate = settings.start_learning_rate
    return [first, _optimizer(settings.start_optimizer, start, rate, settings)]


def _optimizer(
    name: str, groups: list[dict[str, Any]], rate: float, settings: Settings
) -> Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, lr=rate)


def rate_factor(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied with at a step, counted from 0.

    Linear from 1 / ``warmup`` to 1 over the first ``warmup`` steps, and times the schedule's
    factor: 1, ``(1 + cos(pi t)) / 2`` with t from 0 after the warm-up to 1 at the end, or
    ``decay`` to the power of how often ``decay_epochs`` have passed.
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule == "cosine":
        left = max(settings.epochs * steps_per_epoch - settings.warmup, 1)
        return (1 + math.cos(math.pi * min((step - settings.warmup) / left, 1.0))) / 2
    if settings.schedule == "step":
        return settings.decay ** (step // steps_per_epoch // settings.decay_epochs)
    return 1.0


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group of an optimiser this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class AveragedWeights:
    """The exponential moving average of a model's weights: w_avg <- d w_avg + (1 - d) w.

    The decay d begins low, ``(1 + n) / (10 + n)`` after n updates, so that the initial weights are
    soon forgotten. Buffers are copied.

    Arguments:
        model: whose weights are averaged.
        decay: d in the long run.

    Reference:
        Polyak, Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the decay of
        the first steps is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.weights = {name: value.detach().clone() for name, value in _live(model)}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the average."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in _live(self.model):
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model with its averaged weights, and with its own again afterwards."""
        own = {name: value.detach().clone() for name, value in _live(self.model)}
        copy_weights(self.model, self.weights)
        try:
            yield
        finally:
            copy_weights(self.model, own)


@torch.no_grad()
def copy_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write weights, by their names in the state_dict, into a model."""
    for name, value in _live(model):
        value.copy_(weights[name])


def _live(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the state_dict, themselves."""
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            yield name, value
