"""Turning steps into text: the generate() adapter, the decode loop, and continuous batching."""

from nxdi.generation.batcher import ContinuousBatcher
from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter
from nxdi.generation.requests import RequestOptions

__all__ = ["ContinuousBatcher", "HuggingFaceGenerationAdapter", "RequestOptions"]
