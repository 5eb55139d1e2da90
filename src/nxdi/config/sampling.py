"""How the graph itself picks the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nxdi.config.keywords import KeywordConfig
from nxdi.errors import ConfigError


@dataclass(init=False, repr=False, eq=False)
class OnDeviceSamplingConfig(KeywordConfig):
    """Options of sampling inside the graph, under NxDI's names.

    `global_topk`, `top_k_kernel_enabled` and `sampling_dp_degree` are accepted and have no effect:
    the whole vocabulary is always considered, so no hidden cap limits `top_k`.

    Raises: ConfigError for an unknown keyword or a value out of range.
    """

    do_sample: bool = False
    top_k: int = 1  # -1 or 0: no limit
    top_p: float = 1.0
    temperature: float = 1.0  # 0: greedy
    dynamic: bool = False  # take (top_k, top_p, temperature) per row from `sampling_params`
    deterministic: bool = False  # draw with 0.5 instead of a random number
    global_topk: int = 256
    on_device_sampling_config: bool = True
    top_k_kernel_enabled: bool = True
    sampling_dp_degree: int = 1

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.top_k < -1:
            raise ConfigError(f"top_k={self.top_k} is below -1; use 1 or more, or -1 for no limit")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is not in (0, 1]; use 1.0 to keep every token")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature={self.temperature} is not a finite number of 0 or more; "
                "use 0 for greedy"
            )
