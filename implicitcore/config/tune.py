"""Tuning, which the plugin ``implicitcore-lab`` does."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from implicitcore.errors import PluginError

if TYPE_CHECKING:
    from implicitcore.layers.base import ImplicitLayer

_PACKAGE = "implicitcore_lab"


def tune(
    layer: ImplicitLayer | str | Mapping[str, Any], x: Any, cell: Any = None, **options: Any
) -> Any:
    """Search for the fastest solver, gradient strategy, tolerances and backend of a layer.

    It is ``implicitcore_lab.tune``, which lists the options; the plugin is imported at the call.

    Arguments:
        layer: a layer, which is left as it is, or the configuration of one.
        x: one batch of its input, as the layer takes it.
        cell: the cell, with a configuration.
        **options: ``trials``, ``minutes``, ``max_gradient_error``, ``loss``, ``storage``, ...

    Returns:
        ``implicitcore_lab.Tuned``: the front of speed against gradient error and the recommended
        configuration, ``config``.

    Raises:
        PluginError: ``implicitcore-lab`` is not installed.
    """
    try:
        lab = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != _PACKAGE:
            raise
        home = _PACKAGE.replace("_", "-")
        raise PluginError(f"implicitcore.tune is part of {home}: pip install {home}") from error
    return lab.tune(layer, x, cell, **options)
