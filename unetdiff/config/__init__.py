"""The run config: its schema, how it is read, and what it may not say. Free of torch."""
