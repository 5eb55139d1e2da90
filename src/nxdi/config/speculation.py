"""The draft model that is fused with a target: whose it is, where, and how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.config import serialize

if TYPE_CHECKING:
    from nxdi.config.inference import InferenceConfig

# NeuronConfig's keywords for which ranks are where.
RANKS = ("world_size", "start_rank_id", "local_ranks_size")


@dataclass(eq=False)
class FusedSpecNeuronConfig:
    """A draft model within the graphs of a target; given to the target's InferenceConfig.

    worker_cls: NxDI's name of the target's model class, which the target itself knows here.
    draft_config: its Hugging Face attributes, and a NeuronConfig that says how it is held: dtypes,
    quantization, tp_degree (1 or the target's), and for an EAGLE head is_eagle_draft and the
    target's is_eagle3. What both share, such as lengths, rows and caches in blocks, is the
    target's.
    draft_model_path: its folder, kept as an absolute path.
    draft_model_cls: the class that serves it (NeuronLlamaForCausalLM, say); None: the
    target's, or that of EAGLE heads.
    """

    worker_cls: Any
    draft_config: InferenceConfig | None = None
    draft_model_path: str | PathLike[str] | None = None
    draft_model_cls: Any = None

    def __post_init__(self) -> None:
        if self.draft_model_path is not None:
            self.draft_model_path = str(Path(fspath(self.draft_model_path)).absolute())

    def attributes(self) -> dict[str, Any]:
        """What is saved of it; RANKS follow from `tp_degree`, also if that was changed later."""
        config = self.draft_config
        if config is None:
            return vars(self)
        options = serialize.public(config.neuron_config)
        saved = {name: value for name, value in options.items() if name not in RANKS}
        return {**vars(self), "draft_config": {**serialize.public(config), "neuron_config": saved}}
