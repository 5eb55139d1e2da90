"""EAGLE."""
