"""Faster forms of what the plain network computes, exchanged into a finished network."""
