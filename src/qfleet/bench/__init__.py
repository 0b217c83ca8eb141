"""Measurements of the parts, for `qfleet bench`."""
