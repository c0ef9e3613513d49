"""The search for a layer's fastest solver, gradient strategy, tolerances and backend."""
