"""Cells, the f(z, x) that layers are made around, and the presets of the papers."""
