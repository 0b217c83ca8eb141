"""The course of a run: its runtimes, phases, restarts, signals and end."""
