"""What computes RMSNorm on a Neuron device."""

from __future__ import annotations

from torch import Tensor

from nxdi.kernels import nki
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import NormCall
from nxdi.kernels.reference.norm import RMS_NORM
from nxdi.kernels.registry import register


def _run(x: Tensor, gain: Tensor, eps: float, call: NormCall) -> Tensor:
    y: Tensor = load_op("rmsnorm")(x.reshape(-1, call.hidden_size), gain.unsqueeze(0), eps)
    return y.view(x.shape)


def _declines(call: NormCall) -> str | None:
    module = nki.load_kernels("rmsnorm")
    shape, gamma_shape = (call.num_rows, call.hidden_size), (1, call.hidden_size)
    reason: str | None = module.supports(module.Call(shape, call.dtype, gamma_shape))
    return reason


register(RMS_NORM, "neuron", nki_kernel("rmsnorm", _run, _declines))
