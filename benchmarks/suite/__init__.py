"""What `benchmarks/run.py` is made of: cases (ours and a peer), their comparison, growth, the table and the plot."""
