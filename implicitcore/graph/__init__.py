"""A solve as one graph: for deployment, and for compilation with what is around it."""
