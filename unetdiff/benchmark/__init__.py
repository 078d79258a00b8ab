"""Speed and memory of a network on this machine: interleaved timing, peak memory, and the machine's peak throughput.

`unetdiff benchmark` measures a run or a config (`run_benchmark`); the repository's `benchmarks/run.py` compares with
other libraries.
"""
