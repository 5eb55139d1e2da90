"""float8 in blocks, as DeepSeek-V3 and Qwen3-FP8 are published: `weight` and `weight_scale_inv`.

weight = stored * weight_scale_inv of its block. Activations, which the original quantizes as they
come, stay in the compute dtype here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nxdi.config.quantization import BLOCKWISE
from nxdi.runtime.prequantized.fields import names, refuse_others, sizes
from nxdi.runtime.prequantized.stored import StoredFormat, by_block


def read_fp8(quantization: Mapping[str, Any]) -> StoredFormat:
    """The format of `quant_method` "fp8"."""
    understood = {"activation_scheme": ("dynamic", None), "fmt": ("e4m3", None)}
    refuse_others(quantization, understood)
    rows, columns = sizes(quantization.get("weight_block_size"), "weight_block_size")
    skipped = names(quantization.get("modules_to_not_convert"), "modules_to_not_convert")
    return StoredFormat(
        keywords={
            "quantization_type": BLOCKWISE,
            "quantization_dtype": "f8e4m3",
            "quantization_block_size": [rows, columns],
        },
        suffix="",
        dtype=torch.float8_e4m3fn,
        scale_names=lambda name: (f"{name}_scale_inv",),
        unpack=by_block(rows, columns),
        is_declared=lambda module: module not in skipped,
    )
