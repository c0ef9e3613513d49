"""``make honesty``: random problems, inputs and configurations, and what is said of each measured
apart."""
