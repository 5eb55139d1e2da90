"""Signposts: names at the paths where NxDI has them."""
