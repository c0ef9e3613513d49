"""The checks, a module for each kind of part.

Those that several kinds share are imported last, and so come last in every list.
"""

from implicitcore.testing.checks import backend as backend
from implicitcore.testing.checks import dynamics as dynamics
from implicitcore.testing.checks import gradient as gradient
from implicitcore.testing.checks import layer as layer
from implicitcore.testing.checks import ode_solver as ode_solver
from implicitcore.testing.checks import ode_solver_gradient as ode_solver_gradient
from implicitcore.testing.checks import root_solver as root_solver
from implicitcore.testing.checks import root_solver_gradient as root_solver_gradient
from implicitcore.testing.checks import shared_options as shared_options
from implicitcore.testing.checks import shared_solver as shared_solver
