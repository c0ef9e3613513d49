"""Backends: the array kernels of the solvers' inner loops."""
