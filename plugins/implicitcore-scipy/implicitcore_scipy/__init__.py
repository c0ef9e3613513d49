"""SciPy's solvers, one call for each sample.

A solver is imported when it is first used: the plugin itself stays light, for it is loaded wherever
a part is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore.lazy import attributes

if TYPE_CHECKING:
    from implicitcore_scipy.explicit import DOP853 as DOP853
    from implicitcore_scipy.explicit import RK23 as RK23
    from implicitcore_scipy.explicit import RK45 as RK45
    from implicitcore_scipy.minpack import LM as LM
    from implicitcore_scipy.minpack import Hybr as Hybr
    from implicitcore_scipy.quasi_newton import Anderson as Anderson
    from implicitcore_scipy.quasi_newton import Broyden1 as Broyden1
    from implicitcore_scipy.quasi_newton import Broyden2 as Broyden2
    from implicitcore_scipy.quasi_newton import Krylov as Krylov
    from implicitcore_scipy.simple import DFSane as DFSane
    from implicitcore_scipy.simple import DiagBroyden as DiagBroyden
    from implicitcore_scipy.simple import ExcitingMixing as ExcitingMixing
    from implicitcore_scipy.simple import LinearMixing as LinearMixing
    from implicitcore_scipy.stiff import BDF as BDF
    from implicitcore_scipy.stiff import LSODA as LSODA
    from implicitcore_scipy.stiff import Radau as Radau

_MODULES = {
    "Anderson": "quasi_newton",
    "BDF": "stiff",
    "Broyden1": "quasi_newton",
    "Broyden2": "quasi_newton",
    "DFSane": "simple",
    "DOP853": "explicit",
    "DiagBroyden": "simple",
    "ExcitingMixing": "simple",
    "Hybr": "minpack",
    "Krylov": "quasi_newton",
    "LM": "minpack",
    "LSODA": "stiff",
    "LinearMixing": "simple",
    "RK23": "explicit",
    "RK45": "explicit",
    "Radau": "stiff",
}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = attributes(__name__, _MODULES)
