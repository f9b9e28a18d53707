"""Hold the data and the theory that need no torch."""
