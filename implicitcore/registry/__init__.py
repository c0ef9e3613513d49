"""The parts by name, and the plugins that register them."""
