"""Sampling inputs at the path where NxDI has them; they live in `nxdi.graph.sampling_inputs`."""

from nxdi.absent import explain_absent_names
from nxdi.graph.sampling_inputs import prepare_sampling_params

__all__ = ["prepare_sampling_params"]

explain_absent_names(__name__)
