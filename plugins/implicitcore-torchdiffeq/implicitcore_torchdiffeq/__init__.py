"""Every method of torchdiffeq as an ODE solver.

A method is imported when it is first used: the plugin itself stays light, for it is loaded wherever
a part is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore.lazy import attributes

if TYPE_CHECKING:
    from implicitcore_torchdiffeq.adams import ExplicitAdams as ExplicitAdams
    from implicitcore_torchdiffeq.adams import FixedAdams as FixedAdams
    from implicitcore_torchdiffeq.adams import ImplicitAdams as ImplicitAdams
    from implicitcore_torchdiffeq.adaptive import AdaptiveHeun as AdaptiveHeun
    from implicitcore_torchdiffeq.adaptive import Bosh3 as Bosh3
    from implicitcore_torchdiffeq.adaptive import Dopri5 as Dopri5
    from implicitcore_torchdiffeq.adaptive import Dopri8 as Dopri8
    from implicitcore_torchdiffeq.adaptive import Fehlberg2 as Fehlberg2
    from implicitcore_torchdiffeq.fixed import RK4 as RK4
    from implicitcore_torchdiffeq.fixed import Euler as Euler
    from implicitcore_torchdiffeq.fixed import Heun2 as Heun2
    from implicitcore_torchdiffeq.fixed import Heun3 as Heun3
    from implicitcore_torchdiffeq.fixed import Midpoint as Midpoint
    from implicitcore_torchdiffeq.through_scipy import ScipySolver as ScipySolver

_MODULES = {
    "AdaptiveHeun": "adaptive",
    "Bosh3": "adaptive",
    "Dopri5": "adaptive",
    "Dopri8": "adaptive",
    "Euler": "fixed",
    "ExplicitAdams": "adams",
    "Fehlberg2": "adaptive",
    "FixedAdams": "adams",
    "Heun2": "fixed",
    "Heun3": "fixed",
    "ImplicitAdams": "adams",
    "Midpoint": "fixed",
    "RK4": "fixed",
    "ScipySolver": "through_scipy",
}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = attributes(__name__, _MODULES)
