"""What a model will be once it is compiled and loaded, known from its config alone."""

from nxdi.tools.model_info.describe import describe_model
from nxdi.tools.model_info.records import ModelInfo
from nxdi.tools.model_info.request import plan_request

__all__ = ["ModelInfo", "describe_model", "plan_request"]
