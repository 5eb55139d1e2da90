"""The architectures of nxdi's registry, as vLLM's registry wants to hear of them."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn
from vllm import ModelRegistry

from nxdi.errors import UnsupportedError
from nxdi.models.registry import known_architectures


class NxdiModel(nn.Module):
    """Says to vLLM "a decoder that generates text". The worker runs compiled graphs instead."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self._refuse()

    def embed_input_ids(self, input_ids: Tensor) -> NoReturn:
        self._refuse()

    def forward(self, input_ids: Tensor, positions: Tensor) -> NoReturn:
        self._refuse()

    def compute_logits(self, hidden_states: Tensor) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            "nxdi runs compiled graphs, so there is no vLLM module to call; leave worker_cls alone"
        )


def register_architectures() -> None:
    """Let vLLM resolve what `nxdi.models.registry` knows in this process."""
    for architecture in known_architectures():
        ModelRegistry.register_model(architecture, NxdiModel)
