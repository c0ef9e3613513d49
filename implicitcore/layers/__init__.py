"""Implicit layers: dynamics, a solver, a gradient strategy and a start, as one module."""
