"""The tables of papers, measured again: ``implicitcore reproduce TABLE``."""
