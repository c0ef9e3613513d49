"""What the solvers need of torch: packing, norms, autocast, transforms."""
