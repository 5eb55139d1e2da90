"""Torch references: the meaning of each kernel."""
