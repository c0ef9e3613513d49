"""What a user of parts needs: each public name, with the module that defines it.

Type checkers read this list, and so does :mod:`implicitcore.lazy` at run time. A part has its kind,
its name in configurations and its summary above it: what the core registers. The list of what an
author of parts needs is ``extend.pyi``.
"""

from implicitcore.backends.base import Backend as Backend

# backend torch: plain torch operations: the reference
from implicitcore.backends.torch import TorchBackend as TorchBackend
from implicitcore.config.build import build as build
from implicitcore.config.build import create as create
from implicitcore.config.build import describe as describe
from implicitcore.config.files import load_config as load_config
from implicitcore.config.tune import tune as tune
from implicitcore.dynamics.base import Dynamics as Dynamics

# dynamics fixed_point: dz/dt = f(z, x) - z: the fixed points of a cell
from implicitcore.dynamics.fixed_point import FixedPoint as FixedPoint
from implicitcore.dynamics.split_field import SplitField as SplitField

# dynamics vector_field: dz/dt = v(t, z, x)
from implicitcore.dynamics.vector_field import VectorField as VectorField
from implicitcore.errors import AmbiguousPartError as AmbiguousPartError
from implicitcore.errors import ConfigError as ConfigError
from implicitcore.errors import ConvergenceWarning as ConvergenceWarning
from implicitcore.errors import GradientError as GradientError
from implicitcore.errors import ImplicitCoreError as ImplicitCoreError
from implicitcore.errors import ImplicitCoreWarning as ImplicitCoreWarning
from implicitcore.errors import InputError as InputError
from implicitcore.errors import InputWarning as InputWarning
from implicitcore.errors import PluginError as PluginError
from implicitcore.errors import PluginWarning as PluginWarning
from implicitcore.errors import RegistryError as RegistryError
from implicitcore.errors import UnknownPartError as UnknownPartError
from implicitcore.functional import find_root as find_root
from implicitcore.functional import fixed_point as fixed_point
from implicitcore.functional import integrate as integrate

# gradient adjoint: the adjoint equation, integrated backwards in time
from implicitcore.gradients.adjoint import Adjoint as Adjoint
from implicitcore.gradients.base import GradientStrategy as GradientStrategy

# gradient checkpointed: backpropagation through every step of a trajectory, in bounded memory
from implicitcore.gradients.checkpointed import Checkpointed as Checkpointed

# gradient implicit: the implicit function theorem at the solution
from implicitcore.gradients.implicit import Implicit as Implicit

# gradient neumann: the implicit gradient with the series cut to its first terms
from implicitcore.gradients.neumann import Neumann as Neumann

# gradient phantom: a few damped steps with a graph
from implicitcore.gradients.phantom import Phantom as Phantom

# gradient reversible: backpropagation through every step of a reversible solve, in bounded memory
from implicitcore.gradients.reversible import ReversibleGradient as ReversibleGradient

# gradient shine: the implicit gradient with the inverse that a forward Broyden solve estimated
from implicitcore.gradients.shine import Shine as Shine

# gradient unrolled: backpropagation through every step
from implicitcore.gradients.unrolled import Unrolled as Unrolled
from implicitcore.graph.compile import compile as compile
from implicitcore.graph.export import export as export
from implicitcore.layers.base import ImplicitLayer as ImplicitLayer
from implicitcore.layers.dropout import VariationalDropout as VariationalDropout

# start augmented: x with further channels of zeros
from implicitcore.layers.initial import Augmented as Augmented

# start identity: x itself
from implicitcore.layers.initial import Identity as Identity
from implicitcore.layers.initial import InitialGuess as InitialGuess

# start one_step: f(0, x)
from implicitcore.layers.initial import OneStep as OneStep

# start predictor: the prediction of a module
from implicitcore.layers.initial import Predictor as Predictor

# start pyramid: zeros at several resolutions
from implicitcore.layers.initial import Pyramid as Pyramid

# start zeros: zeros
from implicitcore.layers.initial import Zeros as Zeros

# start learned: one learned value per channel
from implicitcore.layers.learned import LearnedInitialGuess as LearnedInitialGuess
from implicitcore.layers.losses import correction_loss as correction_loss
from implicitcore.layers.losses import skip_loss as skip_loss
from implicitcore.layers.losses import start_loss as start_loss
from implicitcore.layers.observers import ObserverHandle as ObserverHandle
from implicitcore.layers.observers import observe as observe
from implicitcore.layers.stability import jacobian_regularizer as jacobian_regularizer
from implicitcore.layers.stability import spectral_radius as spectral_radius

# start warm: each sample's last equilibrium
from implicitcore.layers.warm import WarmStart as WarmStart

# ode_solver adams: Adams predictor-corrector, variable step and order, one evaluation a step
from implicitcore.ode_solvers.adams import Adams as Adams

# ode_solver kencarp3: Kennedy-Carpenter ARK, order 3, adaptive, implicit in the stiff part alone
from implicitcore.ode_solvers.additive_runge_kutta import KenCarp3 as KenCarp3

# ode_solver kencarp4: Kennedy-Carpenter ARK, order 4, adaptive, implicit in the stiff part alone
from implicitcore.ode_solvers.additive_runge_kutta import KenCarp4 as KenCarp4
from implicitcore.ode_solvers.base import ODESolver as ODESolver
from implicitcore.ode_solvers.error_scale import shared_error as shared_error
from implicitcore.ode_solvers.event import Event as Event

# ode_solver esdirk: Kennedy-Carpenter ESDIRK, order 4, adaptive, for stiff dynamics
from implicitcore.ode_solvers.implicit_runge_kutta import ESDIRK as ESDIRK

# ode_solver sdirk2: Alexander's method, order 2, L-stable
from implicitcore.ode_solvers.implicit_runge_kutta import SDIRK2 as SDIRK2

# ode_solver trbdf2: trapezoidal rule and backward differentiation, order 2, L-stable
from implicitcore.ode_solvers.implicit_runge_kutta import TRBDF2 as TRBDF2

# ode_solver implicit_euler: implicit Euler, order 1, L-stable
from implicitcore.ode_solvers.implicit_runge_kutta import ImplicitEuler as ImplicitEuler

# ode_solver kvaerno5: Kvaerno's ESDIRK, order 5, adaptive, for stiff dynamics
from implicitcore.ode_solvers.implicit_runge_kutta import Kvaerno5 as Kvaerno5

# ode_solver trapezoid: trapezoidal rule, order 2, A-stable
from implicitcore.ode_solvers.implicit_runge_kutta import Trapezoid as Trapezoid

# ode_solver leapfrog: leapfrog (Störmer-Verlet), order 2, symplectic, for separable fields
from implicitcore.ode_solvers.leapfrog import Leapfrog as Leapfrog

# ode_solver adaptive_heun: Heun's method, order 2, adaptive
from implicitcore.ode_solvers.low_order import AdaptiveHeun as AdaptiveHeun

# ode_solver fehlberg21: Fehlberg, order 2, adaptive
from implicitcore.ode_solvers.low_order import Fehlberg21 as Fehlberg21

# ode_solver radau_iia5: Radau IIA, order 5, adaptive, for stiff dynamics and small states
from implicitcore.ode_solvers.radau import RadauIIA5 as RadauIIA5

# ode_solver dop853: Dormand-Prince, order 8, adaptive
from implicitcore.ode_solvers.runge_kutta import DOP853 as DOP853

# ode_solver rk4: classical Runge-Kutta, order 4
from implicitcore.ode_solvers.runge_kutta import RK4 as RK4

# ode_solver rk38: 3/8 rule, order 4
from implicitcore.ode_solvers.runge_kutta import RK38 as RK38

# ode_solver bosh3: Bogacki-Shampine, order 3, adaptive
from implicitcore.ode_solvers.runge_kutta import Bosh3 as Bosh3

# ode_solver dopri5: Dormand-Prince, order 5, adaptive
from implicitcore.ode_solvers.runge_kutta import Dopri5 as Dopri5

# ode_solver euler: explicit Euler, order 1
from implicitcore.ode_solvers.runge_kutta import Euler as Euler

# ode_solver fehlberg45: Fehlberg, order 4, adaptive
from implicitcore.ode_solvers.runge_kutta import Fehlberg45 as Fehlberg45

# ode_solver heun: Heun's method, order 2
from implicitcore.ode_solvers.runge_kutta import Heun as Heun

# ode_solver heun3: Heun's third-order method
from implicitcore.ode_solvers.runge_kutta import Heun3 as Heun3

# ode_solver midpoint: explicit midpoint rule, order 2
from implicitcore.ode_solvers.runge_kutta import Midpoint as Midpoint

# ode_solver tsit5: Tsitouras, order 5, adaptive
from implicitcore.ode_solvers.runge_kutta import Tsit5 as Tsit5
from implicitcore.ode_solvers.stepping import Stepping as Stepping
from implicitcore.ode_solvers.stepping import stepping as stepping
from implicitcore.registry.hookspecs import hookimpl as hookimpl
from implicitcore.registry.registry import register as register

# root_solver anderson: Anderson acceleration
from implicitcore.root_solvers.anderson import Anderson as Anderson
from implicitcore.root_solvers.base import RootSolver as RootSolver

# root_solver bicgstab: BiCGSTAB, for linear systems, in little memory
from implicitcore.root_solvers.bicgstab import BiCGSTAB as BiCGSTAB

# root_solver broyden: Broyden's method with limited memory
from implicitcore.root_solvers.broyden import Broyden as Broyden

# root_solver chain: solvers in a row, each for the samples that the last one left
from implicitcore.root_solvers.chain import Chain as Chain

# root_solver gmres: GMRES, for linear systems: the backward pass
from implicitcore.root_solvers.gmres import GMRES as GMRES

# root_solver homotopy: follow a path from an easy problem, then correct
from implicitcore.root_solvers.homotopy import Homotopy as Homotopy
from implicitcore.root_solvers.homotopy_field import HomotopyField as HomotopyField

# root_solver newton: Newton's method with a line search, dense or matrix-free
from implicitcore.root_solvers.newton import Newton as Newton

# root_solver picard: damped fixed-point iteration
from implicitcore.root_solvers.picard import Picard as Picard

# root_solver pseudo_transient: implicit Euler steps that grow into Newton's
from implicitcore.root_solvers.pseudo_transient import PseudoTransient as PseudoTransient

# root_solver reversible: two coupled damped iterations, which can be undone
from implicitcore.root_solvers.reversible import Reversible as Reversible

# root_solver steady_state: integrate dz/dt = g(z, x) until it stands still
from implicitcore.root_solvers.steady_state import SteadyState as SteadyState
from implicitcore.solution import FinalState as FinalState
from implicitcore.solution import Solution as Solution
from implicitcore.solution import SolveError as SolveError
from implicitcore.solution import SolveResult as SolveResult
from implicitcore.solution import Status as Status
from implicitcore.solution import Trajectory as Trajectory
from implicitcore.system.scope import frozen_randomness as frozen_randomness
from implicitcore.tensors.shared import shared as shared

__version__: str
