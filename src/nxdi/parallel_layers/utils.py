"""Small helpers at the path where neuronx_distributed has them."""

from __future__ import annotations

from torch import Tensor

from nxdi.errors import ConfigError
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_size


def divide(numerator: int, denominator: int) -> int:
    """Exact integer division. Raises: ConfigError if there is a remainder."""
    if numerator % denominator:
        raise ConfigError(f"{numerator} is not divisible by {denominator}")
    return numerator // denominator


def get_padding_length(numerator: int, denominator: int) -> int:
    """What to add to `numerator` to make it divisible by `denominator`."""
    return -numerator % denominator


def set_tensor_model_parallel_attributes(
    tensor: Tensor, is_parallel: bool, dim: int, stride: int = 1, num_partitions: int | None = None
) -> None:
    """Mark a parameter as one rank's piece along `dim`, for the loader to cut."""
    if stride != 1:
        raise ConfigError(f"stride={stride}: only consecutive pieces (stride=1) are supported")
    # NxD's attribute protocol.
    vars(tensor).update(
        tensor_model_parallel=is_parallel,
        partition_dim=dim,
        num_partitions=num_partitions or get_tensor_model_parallel_size(),
    )
