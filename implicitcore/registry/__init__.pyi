"""The parts by name, and the plugins that register them."""

from implicitcore.registry.hookspecs import hookimpl as hookimpl
from implicitcore.registry.registry import REGISTRY as REGISTRY
from implicitcore.registry.registry import register as register
