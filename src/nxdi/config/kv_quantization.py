"""How keys and values are stored in 8 bits, under NxDI's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nxdi.config.keywords import KeywordConfig, to_torch_dtype
from nxdi.errors import ConfigError, UnsupportedError

# What a scale is for: everything, one key/value head, or one place in every head.
METHODS = ("per_tensor_symmetric", "per_head_symmetric", "per_channel_symmetric")
_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(init=False, repr=False, eq=False)
class KVQuantizationConfig(KeywordConfig):
    """A cache of float8 numbers.

    direct_cast: store them as they are. Otherwise they are divided by static scales, which the
    checkpoint has as `k_scales` and `v_scales` of each attention: [1], [heads, 1, 1] or
    [1, 1, head_dim], as the methods say.
    Raises: ConfigError, UnsupportedError for a method or dtype that is not known.
    """

    k_quant_method: str = METHODS[0]
    v_quant_method: str = METHODS[0]
    quant_dtype: torch.dtype = torch.float8_e4m3fn
    direct_cast: bool = True

    def __init__(self, **options: Any) -> None:
        if "quant_dtype" in options:
            options["quant_dtype"] = to_torch_dtype(options["quant_dtype"])
        super().__init__(**options)
        if self.quant_dtype not in _DTYPES:
            raise UnsupportedError(
                f"quant_dtype={self.quant_dtype} is not supported; use torch.float8_e4m3fn or "
                "torch.float8_e5m2"
            )
        for name in ("k_quant_method", "v_quant_method"):
            if getattr(self, name) not in METHODS:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(METHODS)}"
                )
