"""How a trajectory is integrated."""
