"""A Ray that qfleet starts for itself: with few processes, apart from ours, gone after the run."""
