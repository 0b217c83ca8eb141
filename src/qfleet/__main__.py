"""`python -m qfleet`, the same as `qfleet`."""

from qfleet.command_line.program import run

if __name__ == "__main__":
    run()
