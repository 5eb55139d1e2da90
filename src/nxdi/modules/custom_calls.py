"""RMSNorm under NxDI's name and path."""

from nxdi.modules.norm import RMSNorm as CustomRMSNorm

__all__ = ["CustomRMSNorm"]
