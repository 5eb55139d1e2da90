"""Attention: projections, policies and the six steps that subclasses may override."""

from nxdi.modules.attention.attention_base import AttentionOutput, NeuronAttentionBase

__all__ = ["AttentionOutput", "NeuronAttentionBase"]
