"""One module or function at a time, on simulated ranks, against a plain callable."""

from nxdi.tools.module_testing.build import BuiltModule, build_function, build_module
from nxdi.tools.module_testing.validate import validate_accuracy

__all__ = ["BuiltModule", "build_function", "build_module", "validate_accuracy"]
