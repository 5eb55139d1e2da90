"""The generate() adapter and the config hook at the path where NxDI has them."""

from nxdi.config import load_pretrained_config
from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter

__all__ = ["HuggingFaceGenerationAdapter", "load_pretrained_config"]
