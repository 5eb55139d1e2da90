"""What finds the most likely token on a Neuron device."""

from __future__ import annotations

from torch import Tensor

from nxdi.kernels import nki
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import ArgmaxCall
from nxdi.kernels.reference.argmax import ARGMAX
from nxdi.kernels.registry import register


def _run(logits: Tensor, call: ArgmaxCall) -> Tensor:
    tokens: Tensor = load_op("sampling")(logits, 1)[1]
    return tokens.squeeze(1)


def _declines(call: ArgmaxCall) -> str | None:
    module = nki.load_kernels("sampling")
    reason: str | None = module.supports(module.Call(call.shape, call.dtype))
    return reason


register(ARGMAX, "neuron", nki_kernel("sampling", _run, _declines))
