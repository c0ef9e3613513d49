"""How an equilibrium is found."""
