"""Speculation within the graph: it proposes, verifies and decides what is kept."""

from __future__ import annotations

from collections.abc import Sequence

from nxdi.config import NeuronConfig
from nxdi.generation.speculation.proposals import (
    Continued,
    Proposal,
    Proposer,
    Rule,
    Seen,
    Wanted,
)
from nxdi.generation.speculation.rules import SeededRule
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM
from nxdi.modules.speculation.acceptance import NO_TOKEN
from nxdi.modules.speculation.tree import Path

_PLACE = 0  # stands for a token that the graph proposes


class InGraph:
    """Says only how many tokens a row has room for; a draft model in the graph proposes them.

    None for a row that is sampled where the graph is greedy: that row's tokens are chosen on the
    host, one by one.
    """

    draft = None

    def __init__(self, config: NeuronConfig) -> None:
        sampling = config.on_device_sampling_config
        self._samples = sampling is not None and (sampling.do_sample or sampling.dynamic)

    def check(self, target: NeuronBaseForCausalLM) -> None:
        """There is nothing that might not fit: the model was made with its draft."""

    def watch(self, seen: Sequence[Seen]) -> None:
        """The draft model computes its part of every step in the graph."""

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        return [Proposal([_PLACE] * row.most if self._decides(row) else []) for row in rows]

    def _decides(self, row: Wanted) -> bool:
        return self._samples or row.sequence.sampling_params[0] == 1


class GraphRule(SeededRule):
    """The tokens that the graph has kept, chosen as by SeededRule."""

    def accept(
        self,
        sequence: Continued,
        proposal: Proposal,
        output: CausalLMOutput,
        row: int,
        first: int = 0,
    ) -> Path:
        if not proposal.tokens:
            return super().accept(sequence, proposal, output, row, first)
        assert output.tokens is not None
        kept = [token for token in output.tokens[row].tolist() if token != NO_TOKEN]
        return Path(list(range(len(kept))), kept)


def make_seeded_rule(model: NeuronBaseForCausalLM, proposer: Proposer) -> SeededRule:
    """How tokens that follow from seeds are judged: by the host, or by the graph already."""
    config, draft = model.neuron_config, proposer.draft
    if config.proposes_in_graph:
        return GraphRule(config, None)
    return SeededRule(config, None if draft is None else draft.neuron_config)
