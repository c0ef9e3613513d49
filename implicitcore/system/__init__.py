"""What a solver sees: dynamics bound to one input."""
