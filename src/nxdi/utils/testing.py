"""Module tests at the path where NxDI has them."""

from nxdi.tools.cut_checkpoint import create_n_layer_checkpoint
from nxdi.tools.module_testing import build_function, build_module, validate_accuracy

__all__ = ["build_function", "build_module", "create_n_layer_checkpoint", "validate_accuracy"]
