"""The base classes at the path where NxDI has them."""

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.decoder import NeuronBaseModel

__all__ = ["NeuronBaseForCausalLM", "NeuronBaseModel"]
