"""NeuronBaseForCausalLM: a compiled decoder as its users see it, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nxdi.errors import BucketError, ConfigError, ShapeError
from nxdi.graph.padding import StepBatch
from nxdi.graph.paging import check_blocks, check_slots, default_blocks, positions_between
from nxdi.graph.plan import FEATURES
from nxdi.graph.rows import check_rows, check_tokens, packed_left, phase_of, row_positions
from nxdi.graph.sampling_inputs import (
    check_sampling_params,
    is_greedy,
    prepare_sampling_params,
    uniform_for,
)
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.modules.rope import longrope_switch
from nxdi.modules.speculation.tree import chain, tree_inputs
from nxdi.runtime.heads import find_heads, read_heads
from nxdi.types import Phase


@dataclass
class CausalLMOutput:
    """Result of one step, rows in the caller's order.

    Shapes: logits float32 [B, 1, vocab_size] of each row's last token, tokens int32 [B]; of
    `verify` [B, S, vocab_size] and [B, S]. features float32 [B, S, F]: what a draft head reads of
    every token. candidates int32 [B, H, K], of `verify` [B, S, H, K]: what heads of its own find
    likeliest 2, 3, ... tokens after that token. None if not compiled in.
    """

    logits: Tensor | None = None
    tokens: Tensor | None = None
    features: Tensor | None = None
    candidates: Tensor | None = None

    @property
    def hidden_states(self) -> Tensor | None:
        """NxDI returns sampled tokens under this name."""
        return self.tokens

    def __iter__(self) -> Iterator[Tensor]:
        return iter([x for x in (self.logits, self.tokens) if x is not None])


class NeuronBaseForCausalLM(NeuronApplicationBase):
    """A decoder with its graphs: `compile`, `load`, then call it with token ids.

    A subclass names its `_model_cls` and `_config_cls`.
    """

    def __call__(
        self, *args: Tensor | None, **kwargs: Tensor | Sequence[int] | None
    ) -> CausalLMOutput:
        return self.forward(*args, **kwargs)  # type: ignore[arg-type]  # forward checks

    def forward(  # noqa: PLR0913  NxDI's inputs
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_ids: Tensor | None = None,
        sampling_params: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        *,
        block_table: Tensor | None = None,
        slot_mapping: Tensor | None = None,
        full_context_lens: Tensor | None = None,
        computed_context_lens: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> CausalLMOutput:
        """One step: a prefill if the rows start at position 0; else they continue.

        Rows continue with one token each (decode), or with several where the config cuts prompts or
        caches prefixes; there a longer prompt takes several steps of its own accord.
        Shapes: input_ids, position_ids int [B, S]; attention_mask [B, S], or [B, T >= S] when it
        also covers earlier tokens; padding on either side; seq_ids [B]: the cache row of each batch
        row (default 0 .. B-1); sampling_params float [B, 3] = (top_k, top_p, temperature); seeds:
        one per row (default: torch's own generator).
        Of a paged cache: block_table int [B, n], the blocks of each row's sequence in order
        (default: an equal part of the pool for each row); slot_mapping [B, S]: checked against it;
        full_context_lens, computed_context_lens [B, 1]: tokens of each row after and before this
        step, in place of positions.
        extras: what `extra_inputs` declares, by name, [B, ...].
        Raises: ShapeError for inputs that do not fit together, and for a decode of a row at
        `prefill_again_at`; BucketError for rows or lengths beyond the largest graph.
        """
        if full_context_lens is not None:
            position_ids = positions_between(input_ids, computed_context_lens, full_context_lens)
            attention_mask = None
        positions = row_positions(input_ids, attention_mask, position_ids)
        check_tokens(torch.where(positions < 0, 0, input_ids), self.config.vocab_size)
        ids, positions = packed_left(input_ids, positions)
        phase = phase_of(positions)
        if phase is Phase.PREFILL:
            ids, positions = self._fit_prompt(ids, positions)
        else:
            self._check_continues(phase, positions)
        rows, blocks = self._place(positions, seq_ids, block_table, slot_mapping)
        sampling = self._sampling_inputs(positions.amax(dim=1), sampling_params, seeds)
        batch = StepBatch(phase, ids, positions, rows, {**blocks, **sampling, **(extras or {})})
        outputs = self.runner.step_in_pieces(batch)
        logits, features = outputs.get("logits"), outputs.get(FEATURES)
        return CausalLMOutput(
            None if logits is None else logits.unsqueeze(1),
            outputs.get("tokens"),
            None if features is None else features[:, : ids.shape[1]],
            outputs.get("candidates"),
        )

    def verify(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        seq_ids: Tensor | None = None,
        sampling_params: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        *,
        block_table: Tensor | None = None,
        parents: Sequence[Sequence[int]] | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> CausalLMOutput:
        """One step of running rows with a result after each of their tokens, not only the last.

        What it writes to the cache may be taken back: a later step that starts at an earlier
        position replaces it.
        Shapes: input_ids, position_ids int [B, S], S up to `speculation_length`; position -1 =
        padding, on the right. Others, and what is raised, as in `forward`.
        parents: the tree that the tokens of each row are, as in `modules.speculation.tree`; None:
        each follows the one before. The cache has them in the order given, from the first position
        on: of a tree it holds at their own positions only the tokens that follow each other at its
        start.
        Raises: ConfigError if the model was compiled without speculation_length, or for a tree
        where it was compiled without trees; ShapeError for parents that are no tree.
        """
        self.check_verifies()
        positions = row_positions(input_ids, None, position_ids)
        check_tokens(torch.where(positions < 0, 0, input_ids), self.config.vocab_size)
        ids, positions = packed_left(input_ids, positions)
        self._check_continues(Phase.VERIFY, positions)
        rows, blocks = self._place(positions, seq_ids, block_table, None)
        tree = self._tree_inputs(positions, parents)
        places = tree.get("token_places", positions)
        sampling = self._sampling_inputs(places, sampling_params, seeds)
        more = {**blocks, **tree, **sampling, **(extras or {})}
        outputs = self.runner.step(StepBatch(Phase.VERIFY, ids, positions, rows, more))
        width = ids.shape[1]
        found = (outputs.get(name) for name in ("logits", "tokens", FEATURES, "candidates"))
        return CausalLMOutput(*(None if value is None else value[:, :width] for value in found))

    def _tree_inputs(
        self, positions: Tensor, parents: Sequence[Sequence[int]] | None
    ) -> dict[str, Tensor]:
        """The declared inputs that say which tree the tokens [B, S] of each row are."""
        lengths = (positions >= 0).sum(dim=1).tolist()
        chains = [chain(length) for length in lengths]
        trees = chains if parents is None else [tuple(row) for row in parents]
        if self.neuron_config.verifies_trees:
            return tree_inputs(trees, positions)
        if trees != chains:
            raise ConfigError(
                "the model was compiled to verify tokens that follow each other, not trees of "
                "them; set token_tree_config, or medusa_tree with is_medusa, and compile again"
            )
        return {}

    def check_verifies(self) -> None:
        """Raises: ConfigError unless there are graphs for `verify`."""
        if Phase.VERIFY not in self.plan.phases:
            raise ConfigError(
                "the model was compiled with speculation_length=0, so it cannot verify proposed "
                "tokens; set speculation_length (5, say) and compile again"
            )

    @property
    def prefill_again_at(self) -> int | None:
        """The position whose token needs the whole sequence, with it, prefilled anew; None: none.

        LongRoPE turns all tokens of a sequence that grows past this position otherwise.
        """
        return longrope_switch(self.config)

    def extra_state_dict(self) -> dict[str, Tensor]:
        config = self.neuron_config
        if not config.is_medusa:
            return {}
        file = find_heads(self.model_path, config.medusa_heads_path)
        heads = read_heads(file, config.num_medusa_heads, self.config.medusa_num_layers)
        return {f"candidate_heads.{name}": tensor for name, tensor in heads.items()}

    def extra_files(self) -> list[Path]:
        config = self.neuron_config
        return [find_heads(self.model_path, config.medusa_heads_path)] if config.is_medusa else []

    def reset(self) -> None:
        """Forget all sequences."""
        self.runner.reset()

    def _check_continues(self, phase: Phase, positions: Tensor) -> None:
        if phase is Phase.EXTEND and not self.neuron_config.extends_prompts:
            raise ShapeError(
                f"a step that continues at position {int(positions[0, 0])} takes 1 token per row, "
                f"not {positions.shape[1]}; for more, compile with is_prefix_caching, "
                "chunked_prefill_config or windowed_context_encoding_size"
            )
        switch = self.prefill_again_at
        if switch is not None and bool((positions == switch).any()):
            raise ShapeError(
                f"position {switch} cannot be decoded: from there on LongRoPE turns the tokens "
                f"before it otherwise; pass all {switch + 1} tokens of the sequence from position 0"
            )

    def _fit_prompt(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        longest = self.neuron_config.longest_prompt
        if ids.shape[1] <= longest:
            return ids, positions
        if not self.neuron_config.allow_input_truncation:
            is_cut = self.neuron_config.chunked_prefill_config is not None
            limit = "seq_len" if is_cut else "max_context_length"
            raise BucketError(
                f"prompt of {ids.shape[1]} tokens is longer than {limit}={longest}; shorten it, "
                f"raise {limit} and compile again, or set allow_input_truncation=True to keep its "
                "first tokens"
            )
        return ids[:, :longest], positions[:, :longest]

    def _place(
        self,
        positions: Tensor,
        seq_ids: Tensor | None,
        block_table: Tensor | None,
        slot_mapping: Tensor | None,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Where the rows of a step have their tokens: cache rows [B], or a block table."""
        config, num_rows = self.neuron_config, positions.shape[0]
        if num_rows > config.max_batch_size:
            raise BucketError(
                f"{num_rows} rows do not fit batch_size={config.max_batch_size}; raise batch_size "
                "and compile again"
            )
        if config.is_block_kv_layout:
            blocks = default_blocks(num_rows, config) if block_table is None else block_table
            check_blocks(blocks, positions, config)
            if slot_mapping is not None:
                check_slots(slot_mapping, blocks, positions, config.pa_block_size)
            return None, {"block_table": blocks}
        if block_table is not None or slot_mapping is not None:
            raise ShapeError(
                "the cache has rows, not blocks: leave out block_table and slot_mapping, or "
                "compile with is_block_kv_layout=True"
            )
        rows = torch.arange(num_rows, dtype=torch.int32) if seq_ids is None else seq_ids.flatten()
        check_rows(rows, num_rows, config.max_batch_size)
        return rows, {}

    def _sampling_inputs(
        self, positions: Tensor, params: Tensor | None, seeds: Sequence[int] | None
    ) -> dict[str, Tensor]:
        """The declared sampling inputs of this step.

        positions [B], or [B, S]: of the tokens after which one is chosen.
        """
        config, num_rows = self.neuron_config.on_device_sampling_config, positions.shape[0]
        if params is not None:
            check_sampling_params(params, num_rows)
        samples = config is not None and (config.do_sample or config.dynamic)
        if not samples:
            if params is not None and not is_greedy(params):
                raise ConfigError(
                    "the graphs were compiled without sampling, so sampling_params other than "
                    "greedy (top_k=1) cannot be honoured; compile with "
                    "on_device_sampling_config=OnDeviceSamplingConfig(dynamic=True)"
                )
            return {}
        assert config is not None
        if params is None:
            params = prepare_sampling_params(
                num_rows, config.top_k, config.top_p, config.temperature
            )
        if seeds is not None and len(seeds) != num_rows:
            raise ConfigError(f"{len(seeds)} seeds for {num_rows} rows; give one per row")
        if config.deterministic:
            uniform = torch.full(positions.shape, 0.5)
        elif seeds is not None:
            uniform = uniform_for(seeds, positions)
        else:
            uniform = torch.rand(positions.shape)
        return {"sampling_params": params.float(), "uniform": uniform}
