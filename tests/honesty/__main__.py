"""``python -m honesty``."""

import sys

from honesty.program import main

if __name__ == "__main__":
    sys.exit(main())
