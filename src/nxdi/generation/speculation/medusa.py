"""Medusa: heads of the target itself propose the tokens after the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nxdi.config.token_tree import TreeShape, chain_shape
from nxdi.errors import ConfigError
from nxdi.generation.speculation.cache_rows import CacheRows
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen, Wanted
from nxdi.models.causal_lm import NeuronBaseForCausalLM


@dataclass
class _Candidates:
    """What the heads said after the first `num_tokens` tokens of a sequence [heads, K]."""

    num_tokens: int = 0
    of_heads: list[list[int]] = field(default_factory=list)


class MedusaHeads:
    """Proposes the candidates of a target's own heads, as `medusa_tree` says, else a chain.

    The heads have looked at the token before the sequence's last one, so nothing is computed here.
    Source: arXiv:2401.10774.
    """

    draft = None
    # Both are made by `check`, which comes first.
    _shape: TreeShape
    _seen: CacheRows[_Candidates]

    def check(self, target: NeuronBaseForCausalLM) -> None:
        """Raises: ConfigError unless `target` has heads."""
        config = target.neuron_config
        if not config.is_medusa:
            raise ConfigError(
                "MedusaHeads proposes what the heads of a model say, and the model was compiled "
                "without; set is_medusa, num_medusa_heads and medusa_speculation_length"
            )
        longest = min(config.num_medusa_heads + 1, config.num_verified)
        shape = config.tree_shape
        self._shape = shape if isinstance(shape, TreeShape) else chain_shape(longest)
        self._seen = CacheRows(config.max_batch_size, lambda _: _Candidates())

    def watch(self, seen: Sequence[Seen]) -> None:
        in_use = {of_row.sequence.id for of_row in seen}
        for of_row in seen:
            candidates = of_row.output.candidates
            assert candidates is not None
            is_of_each = candidates.dim() == 4  # token of a verify step, else of the last one
            heads = of_row.of_tokens(candidates)[-1] if is_of_each else candidates[of_row.row]
            said = self._seen.of(of_row.sequence.id, in_use)
            said.num_tokens = of_row.start + len(of_row.tokens)
            said.of_heads = heads.tolist()

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        return [self._proposal(row) for row in rows]

    def _proposal(self, row: Wanted) -> Proposal:
        found = self._seen.find(row.sequence.id)
        if found is None or found.num_tokens != len(row.sequence.tokens) - 1:
            return Proposal()
        shape = self._shape
        nodes = zip(shape.depths[1:], shape.ranks[1:], strict=True)
        tokens = [found.of_heads[depth - 1][rank] for depth, rank in nodes]
        return Proposal(tokens, None, shape.parents)
