"""What NxDI's `save_quantized_state_dict` writes: `x.weight` and `x.scale` or `x.weight_scale`.

Its names are Hugging Face's; a scale has one number, or one for each row.
"""

from __future__ import annotations

from torch import Tensor

from nxdi.config.quantization import WeightQuantization
from nxdi.runtime.prequantized.stored import StoredFormat, by_block, by_row, check_shape


def nxdi_format(scheme: WeightQuantization) -> StoredFormat:
    """The format of a state dict that was quantized as `scheme` says."""
    rows, columns = scheme.linear_block
    if columns is not None:
        assert rows is not None
        unpack = by_block(rows, columns)
    else:
        unpack = by_row if rows is not None else _for_all
    return StoredFormat(
        keywords={},
        suffix="",
        dtype=scheme.dtype,
        scale_names=lambda name: (f"{name.removesuffix('.weight')}.scale", f"{name}_scale"),
        unpack=unpack,
    )


def _for_all(name: str, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    ones = (1,) * weight.dim()
    check_shape(name, scale, (), (1,), ones)
    return weight, scale.reshape(ones)
