"""From names and mappings to parts, and back."""
