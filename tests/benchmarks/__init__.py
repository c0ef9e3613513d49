"""Programs that measure the library against others; pytest does not collect them. Each is run by a
target of the Makefile."""
