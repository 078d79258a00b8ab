"""How fast a network is on this machine and how much memory it takes: fair timing, peaks, the machine's ceiling.

`unetdiff benchmark` times a model of one's own with it; the repository's `benchmarks/run.py` puts peers beside it.
"""
