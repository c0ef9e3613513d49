"""The search for a layer's fastest configuration: solver, gradient strategy, tolerances, backend."""
