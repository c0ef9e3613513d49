"""The checks, a module for each kind of part."""

from implicitcore.testing.checks import root_solver as root_solver
