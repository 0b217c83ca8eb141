"""Files of a run directory by which a run that goes on is asked and tells."""
