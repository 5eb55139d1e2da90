"""Mixture of experts: a router, experts, how tokens reach them, and how ranks share them."""

from nxdi.modules.moe.block import MoE, make_moe
from nxdi.modules.moe.checkpoint import fuse_experts
from nxdi.modules.moe.spec import MoESpec

__all__ = ["MoE", "MoESpec", "fuse_experts", "make_moe"]
