"""The process that runs the contenders of JAX, in an environment of its own: only the standard
library, NumPy and JAX's libraries are imported here."""
