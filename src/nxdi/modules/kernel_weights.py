"""Weights kept as the kernels read them that options ask for."""

from __future__ import annotations

from torch import nn

from nxdi.config import NeuronConfig
from nxdi.errors import UnsupportedError
from nxdi.kernels.ops import MLP_OPTIONS, OUTPUT_OPTIONS, QKV_OPTIONS
from nxdi.modules.attention.projections import OutputProjection, QKVProjection
from nxdi.modules.mlp import GatedMLP
from nxdi.parallel_layers.layers import BaseParallelLinear, PlainWeight, turn_weight

# What has a kernel, the options that ask for it, and the layers whose weights it reads.
_READ: dict[type[nn.Module], tuple[tuple[str, ...], tuple[str, ...]]] = {
    GatedMLP: (MLP_OPTIONS, ("gate_proj", "up_proj", "down_proj")),
    QKVProjection: (QKV_OPTIONS, ("q_proj", "k_proj", "v_proj")),
    OutputProjection: (OUTPUT_OPTIONS, ("",)),
}


def turn_weights(model: nn.Module, neuron: NeuronConfig) -> None:
    """Keep weights as [input, output] in the layers that a kernel of a Neuron device is to compute.

    Quantized weights stay as they are, and their kernels decline.
    Raises: UnsupportedError for an option that asks for a kernel and a model without its layers.
    """
    for kind, (options, names) in _READ.items():
        asked = [option for option in options if getattr(neuron, option)]
        if not asked or not neuron.is_for_neuron:
            continue
        modules = [module for module in model.modules() if isinstance(module, kind)]
        if not modules:
            raise UnsupportedError(
                f"{asked[0]}=True, but the model has no {kind.__name__}, which its kernel would "
                "compute; leave it out"
            )
        for layer in (module.get_submodule(name) for module in modules for name in names):
            assert isinstance(layer, BaseParallelLinear)
            if isinstance(layer.weight_format, PlainWeight):
                turn_weight(layer)
