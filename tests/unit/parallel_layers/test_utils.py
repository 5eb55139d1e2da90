from __future__ import annotations

import pytest
import torch

from nxdi.errors import ConfigError
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.parallel_layers.sharding import DimShard, shard_of
from nxdi.parallel_layers.utils import (
    divide,
    get_padding_length,
    set_tensor_model_parallel_attributes,
)


def test_divide() -> None:
    assert divide(12, 4) == 3
    with pytest.raises(ConfigError, match="13 is not divisible by 4"):
        divide(13, 4)


@pytest.mark.parametrize(("size", "ranks", "missing"), [(12, 4, 0), (13, 4, 3), (3, 4, 1)])
def test_get_padding_length(size: int, ranks: int, missing: int) -> None:
    assert get_padding_length(size, ranks) == missing


def test_marked_parameters_are_cut_like_our_own() -> None:
    parameter = torch.nn.Parameter(torch.empty(3, 4))
    with tensor_parallel(2):
        set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=1)
    assert shard_of(parameter) == DimShard(dim=1, full_size=8)


def test_number_of_pieces_may_be_given() -> None:
    parameter = torch.nn.Parameter(torch.empty(3, 4))
    set_tensor_model_parallel_attributes(parameter, True, 0, num_partitions=4)
    assert shard_of(parameter) == DimShard(dim=0, full_size=12)


def test_not_parallel_means_replicated() -> None:
    parameter = torch.nn.Parameter(torch.empty(3, 4))
    set_tensor_model_parallel_attributes(parameter, False, 0)
    assert shard_of(parameter) is None


def test_stride_is_refused() -> None:
    parameter = torch.nn.Parameter(torch.empty(3, 4))
    with pytest.raises(ConfigError, match=r"stride=2: only consecutive pieces \(stride=1\)"):
        set_tensor_model_parallel_attributes(parameter, True, 0, stride=2)
