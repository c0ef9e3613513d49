"""What only this repository's own tests share.

What a plugin's tests need is in ``implicitcore.testing``.
"""
