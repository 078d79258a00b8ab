"""What is compared with peers, a module for each peer's piece of work."""
