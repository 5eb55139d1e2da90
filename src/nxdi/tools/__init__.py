"""Standalone tools around the library: nothing in the library imports them."""
