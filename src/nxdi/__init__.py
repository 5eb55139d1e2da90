"""Inference for large language models as static graphs, for AWS Trainium/Inferentia and any CPU.

The public names are imported on first use: `import nxdi` alone does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nxdi._version import __version__
from nxdi.absent import explain_absent_modules
from nxdi.errors import (
    ArtifactError,
    BucketError,
    ConfigError,
    NxdiError,
    ShapeError,
    UnsupportedError,
    WeightError,
)

if TYPE_CHECKING:
    from nxdi.config import InferenceConfig, NeuronConfig, OnDeviceSamplingConfig
    from nxdi.models.auto import AutoModelForCausalLM
    from nxdi.models.registry import register

__all__ = [
    "ArtifactError",
    "AutoModelForCausalLM",
    "BucketError",
    "ConfigError",
    "InferenceConfig",
    "NeuronConfig",
    "NxdiError",
    "OnDeviceSamplingConfig",
    "ShapeError",
    "UnsupportedError",
    "WeightError",
    "__version__",
    "register",
]

_LAZY_HOMES = {
    "AutoModelForCausalLM": "nxdi.models.auto",
    "InferenceConfig": "nxdi.config",
    "NeuronConfig": "nxdi.config",
    "OnDeviceSamplingConfig": "nxdi.config",
    "register": "nxdi.models.registry",
}


def __getattr__(name: str) -> Any:
    if name == "parallel_layers":  # a port may use it through its root alone
        return import_module("nxdi.parallel_layers")
    if name in _LAZY_HOMES:
        return getattr(import_module(_LAZY_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


explain_absent_modules()
