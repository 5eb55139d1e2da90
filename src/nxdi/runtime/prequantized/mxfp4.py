"""GPT-OSS as published: experts in MXFP4, `*_blocks` and `*_scales`, all else in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nxdi.config.quantization import BLOCKWISE, E8M0_SCALES, MXFP4, MXFP4_BLOCK
from nxdi.errors import WeightError
from nxdi.runtime.prequantized.fields import names
from nxdi.runtime.prequantized.stored import StoredFormat, check_shape


def read_mxfp4(quantization: Mapping[str, Any]) -> StoredFormat:
    """The format of `quant_method` "mxfp4"."""
    skipped = names(quantization.get("modules_to_not_convert"), "modules_to_not_convert")
    return StoredFormat(
        keywords={
            "quantization_type": BLOCKWISE,
            "quantization_dtype": MXFP4,
            "quantization_scale_dtype": E8M0_SCALES,
            "quantization_block_size": list(MXFP4_BLOCK),
        },
        suffix="_blocks",
        dtype=torch.uint8,
        scale_names=lambda name: (f"{name}_scales",),
        unpack=_unpack,
        is_declared=lambda module: module not in skipped,
    )


def _unpack(name: str, blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """[E, N, K / 32, 16] and [E, N, K / 32] -> [E, K / 2, N] and [E, K / 32, N], both views."""
    half = MXFP4_BLOCK[1] // 2
    if blocks.dim() != 4 or blocks.shape[-1] != half:
        raise WeightError(
            f"{name}_blocks has shape {tuple(blocks.shape)}; blocks of all experts have shape "
            f"[experts, outputs, inputs / {2 * half}, {half}]: fetch the checkpoint again"
        )
    check_shape(name, scales, tuple(blocks.shape[:-1]))
    return blocks.flatten(2).transpose(1, 2), scales.transpose(1, 2)
