"""oneDNN's linear as an operator that may take its weight as an input.

Inductor lowers torch's own `mkldnn::_linear_pointwise` only for weights that are constants of the
graph; ours are inputs, because one compiled layer serves all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("nxdi", "FRAGMENT")
_LIBRARY.define("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _result_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


_LIBRARY.impl("onednn_linear", _linear, "CPU")
torch.library.register_fake("nxdi::onednn_linear", _result_of, lib=_LIBRARY)

onednn_linear = torch.ops.nxdi.onednn_linear.default
