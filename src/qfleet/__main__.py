"""`python -m qfleet`, the same as `qfleet`."""

import sys

from qfleet.cli import main

if __name__ == "__main__":
    sys.exit(main())
