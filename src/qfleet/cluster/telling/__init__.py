"""What roles tell beside their counters: their logs, and metrics for Ray."""
