"""Weights divided by their norm, under TorchDEQ's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from implicitcore.errors import ConfigError, did_you_mean, show

# The dimension of the outputs in a weight.
_DIMENSIONS: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 0,
    nn.Conv2d: 0,
    nn.Conv3d: 0,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
}
_TYPES = ("weight_norm", "spectral_norm", "none")
_NAMES = {
    "norm_clip": "clip",
    "norm_clip_value": "clip_value",
    "norm_target_norm": "target_norm",
}


class NormalizedWeight(nn.Module):
    """W -> W min(g / norm(W), clip_value): a parametrization.

    Arguments:
        weight: W as it is.
        dim: of the outputs.
        spectral: the norm is the largest singular value, else the 2-norm of each output.
        learn_scale: g is learned, else it is ``target_norm``.
        target_norm: g at first with a spectral norm, and always where it is not learned.
        clip: bound the factor.
        clip_value: by this.
    """

    def __init__(  # noqa: PLR0913 - TorchDEQ's options
        self,
        weight: Tensor,
        dim: int,
        spectral: bool,
        *,
        learn_scale: bool = True,
        target_norm: float = 1.0,
        clip: bool = False,
        clip_value: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim, self.spectral = dim, spectral
        self.clip_value = clip_value if clip else None
        with torch.no_grad():
            rows = self._rows(weight)
            given = torch.full_like(rows, target_norm)
        self.scale: Tensor | nn.Parameter
        if learn_scale:
            self.scale = nn.Parameter(given if spectral else rows.clone())
        else:
            self.register_buffer("scale", given, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as f uses it."""
        norm = self._spectral(weight) if self.spectral else self._rows(weight)
        factor = self.scale / norm
        return weight * (factor if self.clip_value is None else factor.clamp(max=self.clip_value))

    def _rows(self, weight: Tensor) -> Tensor:
        others = [dim for dim in range(weight.ndim) if dim != self.dim]
        return torch.linalg.vector_norm(weight, dim=others, keepdim=True)

    def _spectral(self, weight: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(weight.movedim(self.dim, 0).flatten(1), 2)


def apply_norm(  # noqa: PLR0913 - TorchDEQ's signature
    model: nn.Module,
    norm_type: str = "weight_norm",
    prefix_filter_out: str | Iterable[str] | None = None,
    filter_out: str | Iterable[str] | None = None,
    args: Any = None,
    **norm_kwargs: Any,
) -> None:
    """Normalise the weights of all linear and convolutional layers in a model.

    Each is computed once a solve, its graph included, so that no ``reset_norm`` is needed.

    Arguments:
        model: changed in place.
        norm_type: ``"weight_norm"``, ``"spectral_norm"`` or ``"none"``.
        prefix_filter_out: leave out weights whose name begins with one of these.
        filter_out: leave out weights whose name contains one of these.
        args: options as a namespace, a mapping or an object (``norm_type``, ``norm_clip``,
            ``norm_clip_value``, ``norm_target_norm``, ``norm_no_scale``); they go before the
            keywords.
        **norm_kwargs: ``learn_scale``, ``target_norm``, ``clip`` and ``clip_value``; and
            ``n_power_iterations`` and ``eps``, for which an exact norm has no use.

    Raises:
        ConfigError: there is no such norm or option.
    """
    given = _given(args)
    norm_type = given.pop("norm_type", norm_type)
    options = {**norm_kwargs, **given}
    for unused in ("n_power_iterations", "eps"):
        options.pop(unused, None)
    _check(norm_type, options)
    if norm_type == "none":
        return
    prefixes, parts = _texts(prefix_filter_out), _texts(filter_out)
    for module_name, module in list(model.named_modules()):
        name = f"{module_name}.weight".lstrip(".")
        dim = _DIMENSIONS.get(type(module))
        skip = name.startswith(tuple(prefixes)) or any(part in name for part in parts)
        if dim is None or skip or parametrize.is_parametrized(module, "weight"):
            continue
        weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
        normalized = NormalizedWeight(weight, dim, norm_type == "spectral_norm", **options)
        parametrize.register_parametrization(module, "weight", normalized)


def reset_norm(model: nn.Module) -> None:
    """Nothing: a normalised weight is computed anew in each solve."""


def remove_norm(model: nn.Module) -> None:
    """Make the weights plain parameters again, with the values that they have.

    Arguments:
        model: changed in place.
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        parts: Any = module.parametrizations
        if any(isinstance(part, NormalizedWeight) for part in parts.weight):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _given(args: Any) -> dict[str, Any]:
    """The options in ``args``, by the names of the keywords."""
    if args is None:
        return {}
    values = args if isinstance(args, Mapping) else vars(args)
    found = {_NAMES[name]: values[name] for name in _NAMES if name in values}
    if "norm_type" in values:
        found["norm_type"] = values["norm_type"]
    if "norm_no_scale" in values:
        found["learn_scale"] = not values["norm_no_scale"]
    return found


def _check(norm_type: str, options: Mapping[str, Any]) -> None:
    known = ("learn_scale", "target_norm", "clip", "clip_value")
    problems = [
        f"{name}: unknown option of apply_norm{did_you_mean(name, known)}"
        for name in options
        if name not in known
    ]
    if norm_type not in _TYPES:
        near = did_you_mean(str(norm_type), _TYPES)
        problems.append(
            f"norm_type: there is no {show(norm_type)}{near}; there are {', '.join(_TYPES)}"
        )
    if problems:
        raise ConfigError(problems)


def _texts(value: str | Iterable[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
