"""Train, compare and reproduce implicit layers on real images: the commands ``train``, ``compare`` and ``evaluate``."""
