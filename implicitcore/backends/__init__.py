"""The fused array kernels that the inner loops of the solvers call."""
