"""The checks.

They are listed in the order in which these modules are imported.
"""

from implicitcore.testing.checks import backend as backend
from implicitcore.testing.checks import backend_graph as backend_graph
from implicitcore.testing.checks import backend_kernels as backend_kernels
from implicitcore.testing.checks import backend_krylov as backend_krylov
from implicitcore.testing.checks import backend_operations as backend_operations
from implicitcore.testing.checks import backend_steps as backend_steps
from implicitcore.testing.checks import dynamics as dynamics
from implicitcore.testing.checks import gradient as gradient
from implicitcore.testing.checks import gradient_autograd as gradient_autograd
from implicitcore.testing.checks import layer as layer
from implicitcore.testing.checks import layer_training as layer_training
from implicitcore.testing.checks import ode_solver as ode_solver
from implicitcore.testing.checks import ode_solver_gradient as ode_solver_gradient
from implicitcore.testing.checks import ode_solver_times as ode_solver_times
from implicitcore.testing.checks import root_solver as root_solver
from implicitcore.testing.checks import root_solver_gradient as root_solver_gradient
from implicitcore.testing.checks import shared_batch as shared_batch
from implicitcore.testing.checks import shared_module as shared_module
from implicitcore.testing.checks import shared_options as shared_options
from implicitcore.testing.checks import shared_solver as shared_solver
from implicitcore.testing.checks import start as start
