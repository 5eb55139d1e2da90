"""Comparing a model with transformers: tokens, logits, and the layer and module that differ."""
