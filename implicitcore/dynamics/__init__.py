"""Dynamics: what is solved."""
