"""Ray itself: joining or starting it, creating and asking roles."""
