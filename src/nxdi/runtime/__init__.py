"""Compile, store, load and run graphs. Knows torch modules and plans, not models."""
