"""What draft heads have in common: they read features, and share weights with their target.

A head goes over pairs: the features of a token, as the target has left them, and the token that
follows it. After each pair it predicts the next token, and features of its own, with which it goes
on where the target has not been yet.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from nxdi.errors import ConfigError, WeightError
from nxdi.graph.inputs import BATCH, TOKENS, InputSpec
from nxdi.graph.plan import FEATURES
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.head_fit import head_name
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.runtime.checkpoint import find_checkpoint, read_checkpoint
from nxdi.runtime.prequantized.source import WeightsSource

EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"


class DraftHeadInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes. `target_model_path`: the folder that has what the head's own lacks."""

    target_model_path: str | None = None

    def add_derived_config(self) -> None:
        super().add_derived_config()
        self.architectures = [head_name(self.neuron_config.is_eagle3)]
        if self.neuron_config.sequence_parallel_enabled:
            raise ConfigError(
                "sequence_parallel_enabled=True splits tokens that an EAGLE head takes whole; "
                "leave it out for the head"
            )

    @property
    def feature_size(self) -> int:
        """Elements of the features of a token, as the target returns them."""
        num_layers = 3 if self.neuron_config.is_eagle3 else 1
        return num_layers * int(getattr(self, "target_hidden_size", None) or self.hidden_size)


class NeuronDraftHead(NeuronBaseForCausalLM):
    """A draft head with graphs of its own; its steps take `features` in `extras`.

    Its embedding and lm_head are the target's where its own folder has none.
    """

    _config_cls = DraftHeadInferenceConfig
    # What a head's folder may leave to its target's.
    _SHARED: tuple[str, ...] = (EMBEDDING, LM_HEAD)

    def extra_inputs(self) -> tuple[InputSpec, ...]:
        size = self.config.feature_size
        return (InputSpec(FEATURES, (BATCH, TOKENS, size), "float32", 0),)

    def extra_files(self) -> list[Path]:
        target = self.config.target_model_path
        return find_checkpoint(Path(target)) if target else []

    def _state(self, source: WeightsSource, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        state = super()._state(source, stored)
        if source.is_converted:
            return state
        missing = [name for name in self._SHARED if name not in state]
        return {**state, **(self._of_target(missing) if missing else {})}

    def _of_target(self, names: list[str]) -> dict[str, Tensor]:
        path = self.config.target_model_path
        if path is None:
            raise WeightError(
                f"{self.model_path} has no {' and no '.join(names)}; give target_model_path, the "
                "folder of the target, which has them"
            )
        stored = read_checkpoint(Path(path))
        state = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
        state.setdefault(LM_HEAD, state.get(EMBEDDING))  # type: ignore[arg-type]  # checked below
        lacking = [name for name in names if state.get(name) is None]
        if lacking:
            raise WeightError(
                f"neither {self.model_path} nor the target's folder {path} has "
                f"{' or '.join(lacking)}; copy them to the head's folder"
            )
        return {name: state[name] for name in names}
