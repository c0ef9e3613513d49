"""``python -m implicitcore`` is the command ``implicitcore``."""

from implicitcore.cli import main

if __name__ == "__main__":
    main()
