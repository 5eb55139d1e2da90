"""The benchmark at the path where NxDI has it."""

from nxdi.tools.benchmark import benchmark_sampling

__all__ = ["benchmark_sampling"]
