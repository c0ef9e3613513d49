"""Implicit models in PyTorch: any dynamics, any solver, any gradient strategy, on any backend.

Every public name is here and is imported when it is first used: ``import implicitcore`` imports neither torch nor a plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from implicitcore.lazy import attributes

if TYPE_CHECKING:
    from implicitcore.backends.base import Backend as Backend
    from implicitcore.backends.base import Residual as Residual
    from implicitcore.backends.fused import FusedBackend as FusedBackend
    from implicitcore.backends.torch import TorchBackend as TorchBackend
    from implicitcore.config import build as build
    from implicitcore.config import create as create
    from implicitcore.config import describe as describe
    from implicitcore.config_file import load_config as load_config
    from implicitcore.dynamics.base import Dynamics as Dynamics
    from implicitcore.dynamics.fixed_point import FixedPoint as FixedPoint
    from implicitcore.dynamics.fixed_point import FixedPointMap as FixedPointMap
    from implicitcore.dynamics.vector_field import VectorField as VectorField
    from implicitcore.errors import AmbiguousPartError as AmbiguousPartError
    from implicitcore.errors import ConfigError as ConfigError
    from implicitcore.errors import ConvergenceWarning as ConvergenceWarning
    from implicitcore.errors import GradientError as GradientError
    from implicitcore.errors import ImplicitCoreError as ImplicitCoreError
    from implicitcore.errors import ImplicitCoreWarning as ImplicitCoreWarning
    from implicitcore.errors import InputError as InputError
    from implicitcore.errors import PluginError as PluginError
    from implicitcore.errors import PluginWarning as PluginWarning
    from implicitcore.errors import RegistryError as RegistryError
    from implicitcore.errors import SolveError as SolveError
    from implicitcore.errors import UnknownPartError as UnknownPartError
    from implicitcore.functional import find_root as find_root
    from implicitcore.functional import fixed_point as fixed_point
    from implicitcore.functional import integrate as integrate
    from implicitcore.gradients.adjoint import Adjoint as Adjoint
    from implicitcore.gradients.base import GradientStrategy as GradientStrategy
    from implicitcore.gradients.checkpointed import Checkpointed as Checkpointed
    from implicitcore.gradients.estimated import EstimatedGradient as EstimatedGradient
    from implicitcore.gradients.implicit import Implicit as Implicit
    from implicitcore.gradients.neumann import Neumann as Neumann
    from implicitcore.gradients.phantom import Phantom as Phantom
    from implicitcore.gradients.shine import Shine as Shine
    from implicitcore.gradients.unrolled import Unrolled as Unrolled
    from implicitcore.hookspecs import hookimpl as hookimpl
    from implicitcore.layers.base import ImplicitLayer as ImplicitLayer
    from implicitcore.layers.dropout import VariationalDropout as VariationalDropout
    from implicitcore.layers.losses import skip_loss as skip_loss
    from implicitcore.layers.losses import start_loss as start_loss
    from implicitcore.layers.stability import jacobian_regularizer as jacobian_regularizer
    from implicitcore.layers.stability import spectral_radius as spectral_radius
    from implicitcore.layers.start import FirstUpdate as FirstUpdate
    from implicitcore.layers.start import FromInput as FromInput
    from implicitcore.layers.start import Learned as Learned
    from implicitcore.layers.start import Predictor as Predictor
    from implicitcore.layers.start import Start as Start
    from implicitcore.layers.start import Zeros as Zeros
    from implicitcore.observers import observe as observe
    from implicitcore.ode_solvers.adams import Adams as Adams
    from implicitcore.ode_solvers.base import ODESolver as ODESolver
    from implicitcore.ode_solvers.base import Step as Step
    from implicitcore.ode_solvers.base import StepwiseODESolver as StepwiseODESolver
    from implicitcore.ode_solvers.implicit_runge_kutta import ESDIRK as ESDIRK
    from implicitcore.ode_solvers.implicit_runge_kutta import ImplicitEuler as ImplicitEuler
    from implicitcore.ode_solvers.implicit_runge_kutta import Trapezoid as Trapezoid
    from implicitcore.ode_solvers.runge_kutta import DOP853 as DOP853
    from implicitcore.ode_solvers.runge_kutta import RK4 as RK4
    from implicitcore.ode_solvers.runge_kutta import Bosh3 as Bosh3
    from implicitcore.ode_solvers.runge_kutta import Dopri5 as Dopri5
    from implicitcore.ode_solvers.runge_kutta import Euler as Euler
    from implicitcore.ode_solvers.runge_kutta import Fehlberg45 as Fehlberg45
    from implicitcore.ode_solvers.runge_kutta import Heun as Heun
    from implicitcore.ode_solvers.runge_kutta import Heun3 as Heun3
    from implicitcore.ode_solvers.runge_kutta import Midpoint as Midpoint
    from implicitcore.ode_solvers.runge_kutta import Tsit5 as Tsit5
    from implicitcore.options import Options as Options
    from implicitcore.parts import Registrar as Registrar
    from implicitcore.registry import register as register
    from implicitcore.root_solvers.anderson import Anderson as Anderson
    from implicitcore.root_solvers.base import RootSolver as RootSolver
    from implicitcore.root_solvers.base import StepwiseRootSolver as StepwiseRootSolver
    from implicitcore.root_solvers.bicgstab import BiCGSTAB as BiCGSTAB
    from implicitcore.root_solvers.broyden import Broyden as Broyden
    from implicitcore.root_solvers.chain import Chain as Chain
    from implicitcore.root_solvers.gmres import GMRES as GMRES
    from implicitcore.root_solvers.homotopy import Homotopy as Homotopy
    from implicitcore.root_solvers.newton import Newton as Newton
    from implicitcore.root_solvers.picard import Picard as Picard
    from implicitcore.root_solvers.pseudo_transient import PseudoTransient as PseudoTransient
    from implicitcore.root_solvers.steady_state import SteadyState as SteadyState
    from implicitcore.scope import one_function as one_function
    from implicitcore.solution import Solution as Solution
    from implicitcore.solution import Status as Status
    from implicitcore.system import System as System

    __version__: str

_EXPORTS = {
    "backends.base": ("Backend", "Residual"),
    "backends.fused": ("FusedBackend",),
    "backends.torch": ("TorchBackend",),
    "config": ("build", "create", "describe"),
    "config_file": ("load_config",),
    "dynamics.base": ("Dynamics",),
    "dynamics.fixed_point": ("FixedPoint", "FixedPointMap"),
    "dynamics.vector_field": ("VectorField",),
    "errors": (
        "AmbiguousPartError",
        "ConfigError",
        "ConvergenceWarning",
        "GradientError",
        "ImplicitCoreError",
        "ImplicitCoreWarning",
        "InputError",
        "PluginError",
        "PluginWarning",
        "RegistryError",
        "SolveError",
        "UnknownPartError",
    ),
    "functional": ("find_root", "fixed_point", "integrate"),
    "gradients.adjoint": ("Adjoint",),
    "gradients.base": ("GradientStrategy",),
    "gradients.checkpointed": ("Checkpointed",),
    "gradients.estimated": ("EstimatedGradient",),
    "gradients.implicit": ("Implicit",),
    "gradients.neumann": ("Neumann",),
    "gradients.phantom": ("Phantom",),
    "gradients.shine": ("Shine",),
    "gradients.unrolled": ("Unrolled",),
    "hookspecs": ("hookimpl",),
    "layers.base": ("ImplicitLayer",),
    "layers.dropout": ("VariationalDropout",),
    "layers.losses": ("skip_loss", "start_loss"),
    "layers.start": ("FirstUpdate", "FromInput", "Learned", "Predictor", "Start", "Zeros"),
    "layers.stability": ("jacobian_regularizer", "spectral_radius"),
    "observers": ("observe",),
    "ode_solvers.adams": ("Adams",),
    "ode_solvers.base": ("ODESolver", "Step", "StepwiseODESolver"),
    "ode_solvers.implicit_runge_kutta": ("ESDIRK", "ImplicitEuler", "Trapezoid"),
    "ode_solvers.runge_kutta": ("Bosh3", "DOP853", "Dopri5", "Euler", "Fehlberg45", "Heun", "Heun3", "Midpoint", "RK4", "Tsit5"),
    "options": ("Options",),
    "parts": ("Registrar",),
    "registry": ("register",),
    "root_solvers.anderson": ("Anderson",),
    "root_solvers.base": ("RootSolver", "StepwiseRootSolver"),
    "root_solvers.bicgstab": ("BiCGSTAB",),
    "root_solvers.broyden": ("Broyden",),
    "root_solvers.chain": ("Chain",),
    "root_solvers.gmres": ("GMRES",),
    "root_solvers.homotopy": ("Homotopy",),
    "root_solvers.newton": ("Newton",),
    "root_solvers.picard": ("Picard",),
    "root_solvers.pseudo_transient": ("PseudoTransient",),
    "root_solvers.steady_state": ("SteadyState",),
    "scope": ("one_function",),
    "solution": ("Solution", "Status"),
    "system": ("System",),
}
"""The module of each public name; the block above tells type checkers the same."""

_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


_attribute = attributes(__name__, _MODULE_OF)


def __getattr__(name: str) -> Any:
    value = _version() if name == "__version__" else _attribute(name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
