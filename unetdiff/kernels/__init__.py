"""Faster forms of what the plain network and losses compute, exchanged into a finished network or loss."""
