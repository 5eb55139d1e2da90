"""Which models the graphs of an application run: its own, or a draft model beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from nxdi.config import FusedSpecNeuronConfig, InferenceConfig, NeuronConfig
from nxdi.config.keywords import changed_fields
from nxdi.config.speculation import RANKS
from nxdi.errors import ConfigError, WeightError
from nxdi.models.head_fit import make_head
from nxdi.models.vocabulary import check_same_tokens
from nxdi.modules.speculation.fused import fuse
from nxdi.modules.speculation.fused_head import fuse_head
from nxdi.modules.speculation.last_features import make_last_features
from nxdi.parallel_layers.layers import RankShard
from nxdi.parallel_layers.sharding import SameOnEveryRank, set_shard, shard_of
from nxdi.runtime.weights import model_tensors
from nxdi.types import Phase

if TYPE_CHECKING:
    from nxdi.models.application_base import NeuronApplicationBase

# NeuronConfig's keywords for what both models of a graph share: where, and which steps, it runs.
SHARED = (
    *("backend", "on_cpu", "strict_kernels", "target", "logical_neuron_cores"),
    *("logical_nc_config", "seq_len", "max_context_length", "max_length", "max_new_tokens"),
    *("allow_input_truncation", "padding_side", "batch_size", "max_batch_size", "ctx_batch_size"),
    *("tkg_batch_size", "kv_cache_batch_size", "is_continuous_batching", "enable_bucketing"),
    *("context_encoding_buckets", "token_generation_buckets", "token_generation_batches"),
    *("prefix_buckets", "windowed_context_encoding_size", "is_block_kv_layout", "pa_block_size"),
    *("pa_num_blocks", "is_prefix_caching", "chunked_prefill_config"),
    *("on_device_sampling_config", "speculation_length", "token_tree_config"),
)


class GraphModels(Protocol):
    """The models in an application's graphs."""

    def build(self, phase: Phase) -> nn.Module: ...

    def checked_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...

    def checkpoint_files(self) -> list[Path]: ...

    def classes(self) -> list[type]:
        """Whose code the graphs are made from."""
        ...


class OneModel:
    """The application's own."""

    def __init__(self, app: NeuronApplicationBase) -> None:
        self._app = app

    def build(self, phase: Phase) -> nn.Module:
        return self._app.own_model(phase)

    def checked_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._app.own_weights()

    def checkpoint_files(self) -> list[Path]:
        return self._app.own_files()

    def classes(self) -> list[type]:
        return [type(self._app), type(self._app)._model_cls, type(self._app.config)]


class TwoModels:
    """A target and a draft model, with NxDI's prefixes to the names of their weights."""

    def __init__(self, target: NeuronApplicationBase, draft: NeuronApplicationBase) -> None:
        self._target, self._draft = OneModel(target), OneModel(draft)
        self._degree = draft.num_ranks
        self._is_whole = draft.num_ranks < target.num_ranks

    def build(self, phase: Phase) -> nn.Module:
        # Where the target verifies several tokens, the draft model decodes one after the other.
        draft: Any = self._draft.build(Phase.DECODE if phase is Phase.VERIFY else phase)
        target: Any = self._target.build(phase)
        if self._is_whole:
            _hold_whole(draft)
        return self._fused(draft, target, phase).eval()

    def _fused(self, draft: Any, target: Any, phase: Phase) -> nn.Module:
        return fuse(draft, target, phase, self._degree)

    def checked_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        _, target = self._target.checked_weights()
        try:
            _, draft = self._draft.checked_weights()
        except WeightError as error:
            raise WeightError(f"of the draft model, {error}") from error
        full = {f"target_model.{name}": tensor for name, tensor in target.items()}
        full |= {f"draft_model.{name}": tensor for name, tensor in draft.items()}
        return model_tensors(self.build(Phase.DECODE)), full

    def checkpoint_files(self) -> list[Path]:
        return [*self._target.checkpoint_files(), *self._draft.checkpoint_files()]

    def classes(self) -> list[type]:
        return [*self._target.classes(), *self._draft.classes()]


class TargetAndHead(TwoModels):
    """A target, and a draft head that reads its features."""

    def _fused(self, draft: Any, target: Any, phase: Phase) -> nn.Module:
        last = make_last_features(target.neuron_config, draft.config.feature_size)
        return fuse_head(draft, target, phase, self._degree, last)


def choose_models(app: NeuronApplicationBase) -> GraphModels:
    """Those that the config of `app` asks for.

    Raises: ConfigError if it contradicts itself, or its draft model does not fit the target.
    """
    fused, is_fused = app.config.fused_spec_config, app.neuron_config.enable_fused_speculation
    if fused is None and not is_fused:
        return OneModel(app)
    if fused is None:
        raise ConfigError(
            "enable_fused_speculation=True needs a draft model: give the InferenceConfig a "
            "fused_spec_config, or AutoModelForCausalLM.from_pretrained a draft_model_path"
        )
    if not is_fused:
        raise ConfigError("fused_spec_config is given; set enable_fused_speculation=True as well")
    if not isinstance(fused, FusedSpecNeuronConfig):
        raise ConfigError(f"fused_spec_config={fused!r} must be a FusedSpecNeuronConfig")
    kind = TargetAndHead if app.neuron_config.enable_eagle_speculation else TwoModels
    return kind(app, _make_draft(app, fused))


def _make_draft(app: NeuronApplicationBase, fused: FusedSpecNeuronConfig) -> NeuronApplicationBase:
    config, path = fused.draft_config, fused.draft_model_path
    if not isinstance(config, InferenceConfig) or path is None:
        raise ConfigError(
            f"fused_spec_config has draft_config={config!r} and draft_model_path={path!r}; give "
            "the InferenceConfig of the draft model, and its folder"
        )
    draft_cls, model_cls = fused.draft_model_cls or type(app), type(app)._model_cls
    if fused.worker_cls not in (None, model_cls) or not hasattr(draft_cls, "own_model"):
        raise ConfigError(
            f"fused_spec_config has worker_cls={fused.worker_cls!r} and draft_model_cls="
            f"{fused.draft_model_cls!r}; these are {model_cls.__name__}, the target's, and a class "
            f"like {type(app).__name__}, or None for the target's own"
        )
    reads, is_head = app.neuron_config.enable_eagle_speculation, config.neuron_config.is_eagle_draft
    if reads != is_head:
        raise ConfigError(
            f"the target has enable_eagle_speculation={reads}, its draft model is_eagle_draft="
            f"{is_head}; set both for an EAGLE head, each in its own NeuronConfig, or neither"
        )
    config = copy.copy(config)
    config.neuron_config = draft_options(config.neuron_config, app.neuron_config)
    draft: NeuronApplicationBase = (
        make_head(fused.draft_model_cls, path, config, app) if is_head else draft_cls(path, config)
    )
    check_same_tokens(app, draft)
    return draft


def draft_options(draft: NeuronConfig, target: NeuronConfig) -> NeuronConfig:
    """The options of a draft model, with the target's for what both share.

    Raises: ConfigError for one that both share and the draft model has otherwise.
    """
    if draft.tp_degree not in (1, target.tp_degree):
        raise ConfigError(
            f"the draft model has tp_degree={draft.tp_degree}, the target {target.tp_degree}; in "
            f"one graph it is cut for the same ranks ({target.tp_degree}), or each has it whole (1)"
        )
    for f in changed_fields(draft):
        own, common = getattr(draft, f.name), getattr(target, f.name, None)
        if f.name in SHARED and own != common:
            raise ConfigError(
                f"the draft model has {f.name}={own!r}, the target {common!r}; both are in one "
                "graph: leave it out of the draft model's NeuronConfig"
            )
    options = copy.copy(draft)
    # As many ranks as the target has are the same ranks.
    for name in (*SHARED, *(RANKS if draft.tp_degree == target.tp_degree else ())):
        setattr(options, name, getattr(target, name))
    options.enable_fused_speculation = options.output_logits = options.async_mode = False
    options.enable_eagle_speculation = False
    options.enable_eagle_draft_input_norm |= target.enable_eagle_draft_input_norm
    options.kv_cache_memory_bytes = None  # the target's pays for both, and decides pa_num_blocks
    return options


def _hold_whole(model: nn.Module) -> None:
    """Let every rank have what was built for a single one."""
    for parameter in model.parameters():
        shard = shard_of(parameter)
        if shard is not None and not isinstance(shard, RankShard):
            set_shard(parameter, SameOnEveryRank(shard))
