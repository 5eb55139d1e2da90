"""An EAGLE head that proposes what it reads from its target's activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nxdi.config.token_tree import DynamicShape, TreeShape
from nxdi.errors import ConfigError
from nxdi.generation.rows import Row, row_inputs, row_tables
from nxdi.generation.speculation.cache_rows import CacheRows
from nxdi.generation.speculation.compatible import check_compatible
from nxdi.generation.speculation.eagle_drafts import ChainDraft, Draft, Followed, Pairs, TreeDraft
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen, Wanted
from nxdi.graph.plan import FEATURES, IS_OWN
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM
from nxdi.models.draft_head import NeuronDraftHead
from nxdi.models.head_fit import check_reads
from nxdi.types import Phase


class EagleHead:
    """A compiled and loaded head, made for the target; the target returns its features.

    Each sequence has a row of the head's cache, with one pair per token. It follows a sequence from
    the first token on that it has seen the target compute: where a prefix was found in a cache, it
    knows nothing of that. Source: arXiv:2401.15077, arXiv:2503.01840.
    """

    def __init__(self, head: NeuronDraftHead) -> None:
        self.draft = head
        config = head.neuron_config
        self._rows = CacheRows(config.tkg_batch_size, Followed)
        self._tables = row_tables(config, config.tkg_batch_size)
        self._longest = head.plan.max_length(Phase.DECODE)
        self._size = head.config.feature_size
        self._shape: TreeShape | DynamicShape | None = None

    def check(self, target: NeuronBaseForCausalLM) -> None:
        """Raises: ConfigError unless the head was made for such a target, and compiled for it."""
        check_head(target, self.draft)
        self._shape = target.neuron_config.tree_shape

    def watch(self, seen: Sequence[Seen]) -> None:
        in_use = {item.sequence.id for item in seen}
        for item in seen:
            assert item.output.features is not None
            features = item.of_tokens(item.output.features)
            self._rows.of(item.sequence.id, in_use).add(item.start, item.tokens, features)

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        drafts = [self._draft(row) for row in rows]
        made = [draft for draft in drafts if draft is not None]
        self._catch_up(made, rule)
        most = self.draft.neuron_config.num_verified
        call = self.draft if self._shape is None else self.draft.verify
        while going := [(draft, pairs) for draft in made if (pairs := draft.next(most))]:
            self._bring(call, going, rule)
            made = [draft for draft, _ in going]
        return [Proposal() if draft is None else draft.proposal for draft in drafts]

    def _draft(self, row: Wanted) -> Draft | None:
        """None if the head does not know all tokens but the last, or has no room."""
        tokens, followed = row.sequence.tokens, self._rows.find(row.sequence.id)
        if followed is None or tokens[followed.first : -1] != followed.tokens:
            return None
        longest = self.draft.neuron_config.longest_prompt
        if not followed.held and len(followed.tokens) > longest:
            followed.keep_last(longest)
        room = self._room(len(followed.tokens))
        if min(row.most, room) < 1:
            return None
        if self._shape is None:
            return ChainDraft(row, followed, min(row.most, room))
        return TreeDraft(row, followed, room, self._shape)

    def _room(self, num_pairs: int) -> int:
        """How many pairs it can compute from the last of so many on, which it holds.

        LongRoPE's switch is not passed, nor the pair there computed again.
        """
        switch = self.draft.prefill_again_at
        stop = self._longest if switch is None or num_pairs > switch + 1 else switch
        return max(stop - num_pairs + 1, 0)

    def _catch_up(self, drafts: Sequence[Draft], rule: Rule) -> None:
        """Compute the pairs that wait; each draft then sees what may come first."""
        fresh = [draft for draft in drafts if not draft.followed.held]
        longest = self.draft.neuron_config.longest_prompt
        self._bring(self.draft, [(draft, _waiting(draft, longest)) for draft in fresh], rule)
        most = self.draft.neuron_config.num_verified
        while behind := [draft for draft in drafts if draft.followed.waiting]:
            pairs = [(draft, _waiting(draft, most)) for draft in behind]
            self._bring(self.draft.verify, pairs, rule)

    def _bring(
        self,
        call: Callable[..., CausalLMOutput],
        given: Sequence[tuple[Draft, Pairs]],
        rule: Rule,
    ) -> None:
        """Compute pairs, and show their drafts what the head says after the last that wait."""
        if not given:
            return
        inputs: dict[str, Any] = row_inputs(
            self.draft.neuron_config,
            [
                Row(pairs.ids, pairs.start, self._tables[draft.followed.index])
                for draft, pairs in given
            ],
        )
        inputs |= rule.draft_inputs([draft.wanted.sequence for draft, _ in given])
        extras = self._extras([pairs for _, pairs in given], inputs["input_ids"].shape[1])
        parents = [pairs.parents for _, pairs in given]
        if any(parents):
            inputs["parents"] = parents
        output = call(**inputs, extras=extras)
        for row, (draft, pairs) in enumerate(given):
            if not draft.followed.waiting:
                draft.take(output, row, pairs, rule)

    def _extras(self, given: Sequence[Pairs], width: int) -> dict[str, Tensor]:
        features = torch.zeros(len(given), width, self._size)
        is_own = torch.zeros(len(given), width, dtype=torch.int32)
        for row, pairs in enumerate(given):
            num = len(pairs.ids) - len(pairs.own)
            features[row, :num] = pairs.features
            for place, own in enumerate(pairs.own, start=num):
                features[row, place, : len(own)] = own
                is_own[row, place] = 1
        extras = {FEATURES: features}
        return {**extras, IS_OWN: is_own} if self.draft.neuron_config.is_eagle3 else extras


def _waiting(draft: Draft, most: int) -> Pairs:
    return draft.followed.take(draft.wanted.sequence.tokens, most)


def check_head(target: NeuronBaseForCausalLM, head: NeuronBaseForCausalLM) -> None:
    """Raises: ConfigError naming what keeps a head from reading this target."""
    check_compatible(target, head)
    check_reads(head, target)
    config, own = target.neuron_config, head.neuron_config
    if own.speculation_length < 2:
        raise ConfigError(
            f"the head has speculation_length={own.speculation_length}, so it cannot take several "
            "verified tokens at once; compile it with the target's speculation_length="
            f"{config.speculation_length}"
        )
    if config.tree_shape is not None and not own.verifies_trees:
        raise ConfigError(
            "the target verifies trees, which the head is to grow; compile it with the target's "
            "token_tree_config"
        )
    if config.tree_shape is not None and own.on_device_sampling_config is not None:
        raise ConfigError(
            "a tree grows from the head's logits; compile it without on_device_sampling_config"
        )
    sampling = own.on_device_sampling_config
    if sampling is not None and (sampling.do_sample or sampling.dynamic):
        raise ConfigError(
            "the head samples in its graphs, by positions of its own; compile it without "
            "on_device_sampling_config"
        )
