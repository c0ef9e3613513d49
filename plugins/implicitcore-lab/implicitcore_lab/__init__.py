"""Train, compare and reproduce implicit layers on real images.

The commands ``train``, ``compare`` and ``evaluate``.
"""
