"""Sampling inputs at the path where NxDI has them."""
