"""The compared workloads, one module for each peer and kind of work."""
