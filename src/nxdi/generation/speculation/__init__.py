"""Speculative decoding: several tokens per step, proposed cheaply and verified by the model."""

from nxdi.generation.speculation.draft import DraftModel
from nxdi.generation.speculation.eagle import EagleHead
from nxdi.generation.speculation.lookup import PromptLookup
from nxdi.generation.speculation.medusa import MedusaHeads
from nxdi.generation.speculation.step import Counts, Speculation

__all__ = ["Counts", "DraftModel", "EagleHead", "MedusaHeads", "PromptLookup", "Speculation"]
