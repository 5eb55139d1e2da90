"""How fast a model would be, and whether it would fit, from its config alone."""

from nxdi.tools.estimate.hardware import Hardware, find_hardware
from nxdi.tools.estimate.planner import Estimate, Speculation, estimate_model

__all__ = ["Estimate", "Hardware", "Speculation", "estimate_model", "find_hardware"]
