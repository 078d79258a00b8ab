"""Hostile input, kills and long runs: what `hostile.py`, `kills.py` and `soak.py` are made of."""
