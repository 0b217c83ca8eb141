"""`python -m qfleet`, the same as `qfleet`."""

from qfleet.program import run

if __name__ == "__main__":
    run()
