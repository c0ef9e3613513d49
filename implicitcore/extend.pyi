"""What an author of parts needs: each public name, with the module that defines and documents it.

By kind of part. The base classes of the kinds are on the users' page too: users name them in
annotations. Type checkers read this list, and so does :mod:`implicitcore.lazy` at run time.
"""

from implicitcore.backends.base import Backend as Backend
from implicitcore.backends.base import Residual as Residual
from implicitcore.backends.fused import FusedBackend as FusedBackend
from implicitcore.dynamics.base import Dynamics as Dynamics
from implicitcore.dynamics.fixed_point import FixedPointMap as FixedPointMap
from implicitcore.errors import did_you_mean as did_you_mean
from implicitcore.errors import show as show
from implicitcore.gradients.approximate import ApproximateGradient as ApproximateGradient
from implicitcore.gradients.base import GradientStrategy as GradientStrategy
from implicitcore.gradients.base import Solve as Solve
from implicitcore.layers.base import CallOptions as CallOptions
from implicitcore.layers.base import ImplicitLayer as ImplicitLayer
from implicitcore.layers.base import LayerOptions as LayerOptions
from implicitcore.layers.initial import InitialGuess as InitialGuess
from implicitcore.layers.options import LayerOption as LayerOption
from implicitcore.layers.options import OptionOf as OptionOf
from implicitcore.lazy import attach_stub as attach_stub
from implicitcore.ode_solvers.base import ODESolver as ODESolver
from implicitcore.ode_solvers.base import Step as Step
from implicitcore.ode_solvers.base import Stop as Stop
from implicitcore.ode_solvers.implicit_runge_kutta import ImplicitRungeKutta as ImplicitRungeKutta
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau as ImplicitTableau
from implicitcore.ode_solvers.runge_kutta import AdaptiveRungeKutta as AdaptiveRungeKutta
from implicitcore.ode_solvers.runge_kutta import FixedRungeKutta as FixedRungeKutta
from implicitcore.ode_solvers.step_size import Adaptive as Adaptive
from implicitcore.ode_solvers.step_size import Fixed as Fixed
from implicitcore.ode_solvers.step_size import StepSize as StepSize
from implicitcore.ode_solvers.stepwise import EqualSteps as EqualSteps
from implicitcore.ode_solvers.stepwise import StepwiseODESolver as StepwiseODESolver
from implicitcore.ode_solvers.tableaus import Tableau as Tableau
from implicitcore.ode_solvers.times import check_times as check_times
from implicitcore.options.options import CheckedMeta as CheckedMeta
from implicitcore.options.options import Options as Options
from implicitcore.options.options import options_of as options_of
from implicitcore.options.shared import ErrorTolerance as ErrorTolerance
from implicitcore.options.shared import ResidualTolerance as ResidualTolerance
from implicitcore.options.shared import StepLimit as StepLimit
from implicitcore.options.types import Count as Count
from implicitcore.options.types import Fraction as Fraction
from implicitcore.options.types import OnFailure as OnFailure
from implicitcore.options.types import Positive as Positive
from implicitcore.options.types import Shape as Shape
from implicitcore.options.types import Spec as Spec
from implicitcore.options.types import Tolerance as Tolerance
from implicitcore.options.types import Whole as Whole
from implicitcore.registry.hookspecs import hookimpl as hookimpl
from implicitcore.registry.part import Registrar as Registrar
from implicitcore.registry.registry import REGISTRY as REGISTRY
from implicitcore.root_solvers.base import RootSolver as RootSolver
from implicitcore.root_solvers.convergence import StopTest as StopTest
from implicitcore.root_solvers.linear import LinearRootSolver as LinearRootSolver
from implicitcore.root_solvers.stepwise import StepwiseRootSolver as StepwiseRootSolver
from implicitcore.solution import Backward as Backward
from implicitcore.system.evaluation import Evaluation as Evaluation
from implicitcore.system.linear_system import LinearSystem as LinearSystem
from implicitcore.system.linearization import Linearization as Linearization
from implicitcore.system.system import System as System
from implicitcore.tensors.norms import column as column
from implicitcore.tensors.norms import norm as norm
from implicitcore.tensors.norms import real_dtype as real_dtype
from implicitcore.tensors.norms import rms_norm as rms_norm
from implicitcore.tensors.packing import Packing as Packing
