"""The options of a part: their names, types, bounds and defaults."""
