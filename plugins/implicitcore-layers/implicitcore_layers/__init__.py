"""Published implicit layers for implicitcore, each a module around the user's cell.

A layer is imported when it is first used: the plugin itself stays light, for it is loaded wherever
a part is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore.lazy import attributes

if TYPE_CHECKING:
    from implicitcore_layers.continuous_deq import ContinuousDEQ as ContinuousDEQ
    from implicitcore_layers.deq import DEQ as DEQ
    from implicitcore_layers.homoode import HomoODE as HomoODE
    from implicitcore_layers.neural_ode import NeuralODE as NeuralODE
    from implicitcore_layers.skip_deq import SkipDEQ as SkipDEQ
    from implicitcore_layers.skip_deq import SkipRegDEQ as SkipRegDEQ

_MODULES = {
    "DEQ": "deq",
    "ContinuousDEQ": "continuous_deq",
    "HomoODE": "homoode",
    "NeuralODE": "neural_ode",
    "SkipDEQ": "skip_deq",
    "SkipRegDEQ": "skip_deq",
}
__all__ = ["DEQ", "ContinuousDEQ", "HomoODE", "NeuralODE", "SkipDEQ", "SkipRegDEQ"]  # noqa: F822 - by __getattr__

__getattr__ = attributes(__name__, _MODULES)
