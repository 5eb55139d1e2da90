"""What computes the projections of a decoder layer on a Neuron device.

An option has to ask for each: a kernel reads weights as [input, output], which is how they are kept
from then on. Where ranks have parts of a sum, kernels compute the parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nxdi.kernels import nki
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import (
    MLP_OPTIONS,
    OUTPUT_OPTIONS,
    QKV_OPTIONS,
    GatedMLPCall,
    OutputCall,
    QKVCall,
)
from nxdi.kernels.registry import Kernel, register


def _mlp(name: str, options: tuple[str, ...], max_rows: int | None = None) -> Kernel:
    """A kernel of gated MLPs, of up to `max_rows` tokens."""

    def run(mlp: Any, x: Tensor, call: GatedMLPCall) -> Tensor:
        weights = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
        part = load_op(name)(x.reshape(-1, call.hidden_size), *weights, activation=call.act)
        out: Tensor = mlp.down_proj.complete(part.view(x.shape))
        return out

    def declines(call: GatedMLPCall) -> str | None:
        wide = call.hidden_size, call.intermediate_size
        module = nki.load_kernels(name)
        found = module.Call(
            (call.num_rows, call.hidden_size), wide, wide[::-1], call.dtype, activation=call.act
        )
        reason: str | None = call.peculiarity or module.supports(found)
        return reason

    def is_meant(call: GatedMLPCall) -> bool:
        return max_rows is None or call.num_rows <= max_rows

    return nki_kernel(name, run, declines, options, is_meant)


def _run_qkv(projection: Any, x: Tensor, call: QKVCall) -> tuple[Tensor, ...]:
    layers = projection.q_proj, projection.k_proj, projection.v_proj
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases).unsqueeze(0) if biases else None
    rows, weights = x.reshape(-1, call.hidden_size), [layer.weight for layer in layers]
    results = load_op("qkv")(rows, *weights, call.head_dim, bias)
    return tuple(result.view(*x.shape[:-1], -1) for result in results)


def _declines_qkv(call: QKVCall) -> str | None:
    module, hidden = nki.load_kernels("qkv"), call.hidden_size
    shapes = (call.num_rows, hidden), (hidden, call.q_size), (hidden, call.kv_size)
    found = module.Call(*shapes, call.dtype, call.head_dim)
    reason: str | None = call.peculiarity or module.supports(found)
    return reason


def _run_output(layer: Any, x: Tensor, call: OutputCall) -> Tensor:
    part = load_op("attention_output")(x.reshape(-1, call.input_size), layer.weight)
    out: Tensor = layer.complete(part.view(*x.shape[:-1], -1))
    return out


def _declines_output(call: OutputCall) -> str | None:
    module = nki.load_kernels("attention_output")
    shapes = (call.num_rows, call.input_size), (call.input_size, call.output_size)
    reason: str | None = call.peculiarity or module.supports(module.Call(*shapes, call.dtype))
    return reason


_MAX_TOKENS = 128  # of a step whose MLP only the decode kernel is meant for

register("gated_mlp", "neuron", _mlp("mlp_decode", MLP_OPTIONS, _MAX_TOKENS))
register("gated_mlp", "neuron", _mlp("mlp_prefill", MLP_OPTIONS[:1]))
register("qkv", "neuron", nki_kernel("qkv", _run_qkv, _declines_qkv, QKV_OPTIONS))
register(
    "attention_output",
    "neuron",
    nki_kernel("attention_output", _run_output, _declines_output, OUTPUT_OPTIONS),
)
