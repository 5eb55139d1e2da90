"""Turning steps into text: the generate() adapter and the decode loop."""

from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter

__all__ = ["HuggingFaceGenerationAdapter"]
