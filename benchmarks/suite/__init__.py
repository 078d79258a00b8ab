"""The parts of `benchmarks/run.py`: cases (unetdiff and a peer), comparison, growth, tables and plot."""
