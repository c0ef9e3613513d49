"""The public names, each with the module that defines it; read at run time too."""

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
