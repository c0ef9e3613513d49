"""What is not collected where its dependency is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("pytorch_lightning") else ["implicitcore_lab/lightning.py"]
