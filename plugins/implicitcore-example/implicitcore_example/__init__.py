"""Aitken's dynamic relaxation, per sample.

The part is in :mod:`implicitcore_example.relaxation`.
Nothing is imported here, for this package is read whenever implicitcore looks a part up.
"""
