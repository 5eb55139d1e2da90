"""Where the weights of a module under test come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nxdi.errors import WeightError
from nxdi.modules.norm import LayerNorm, RMSNorm
from nxdi.parallel_layers.layers import BaseParallelLinear, ParallelEmbedding, RankShard
from nxdi.parallel_layers.sharding import shard_of
from nxdi.runtime.checkpoint import read_checkpoint, read_safetensors
from nxdi.runtime.weights import model_tensors


def initial_weights(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The weights of a whole module made with seed 0.

    Layers of this library, which hold no values of their own, get those that torch's counterparts
    would have: a twin made of nn.Linear and nn.Embedding alone has the same weights.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = make()
        for layer in module.modules():
            if isinstance(layer, BaseParallelLinear):
                _fill_linear(layer)
            elif isinstance(layer, ParallelEmbedding):
                layer.weight.normal_()
            elif isinstance(layer, (RMSNorm, LayerNorm)):
                _fill_norm(layer)
    # The rank itself is in no checkpoint.
    return {
        name: tensor.detach()
        for name, tensor in model_tensors(module).items()
        if not isinstance(shard_of(tensor), RankShard)
    }


def _fill_linear(layer: nn.Module) -> None:
    """As nn.Linear: weight and bias uniform within 1 / sqrt(input features)."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    bound = 1 / math.sqrt(weight.shape[1])
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if isinstance(bias, Tensor):
        bias.uniform_(-bound, bound)


def _fill_norm(layer: RMSNorm | LayerNorm) -> None:
    """As torch's norms: they change nothing yet."""
    layer.weight.fill_(1)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        bias.zero_()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a model folder, a safetensors file, or a file that torch.save wrote.

    Raises: WeightError if it cannot be read as such.
    """
    if path.is_dir():
        return read_checkpoint(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes its parsers raise anything
        raise WeightError(f"{path} is not a readable checkpoint: {error}; save it anew") from error
    if not (isinstance(loaded, dict) and all(isinstance(t, Tensor) for t in loaded.values())):
        raise WeightError(f"{path} is not a dictionary of tensors; save module.state_dict()")
    return loaded
