"""The tests here share ``cpu_launcher.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
