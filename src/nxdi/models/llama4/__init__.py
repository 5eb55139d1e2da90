"""Llama 4, text only."""
