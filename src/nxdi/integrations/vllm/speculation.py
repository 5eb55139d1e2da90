"""Who proposes the tokens that vLLM's `speculative_config` asks for, and for which requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.v1.outputs import DraftTokenIds

from nxdi.generation.speculation import DraftModel, EagleHead, MedusaHeads, PromptLookup
from nxdi.generation.speculation.fused import make_seeded_rule
from nxdi.generation.speculation.proposals import Proposer, Seen, Wanted
from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.draft_head import NeuronDraftHead

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig

    from nxdi.integrations.vllm.requests import RunningRequest

# What a draft has as its target has it. Rows only: its cache is its own, and needs no blocks.
_AS_TARGET = (
    "backend",
    "batch_size",
    "max_batch_size",
    "tkg_batch_size",
    "seq_len",
    "max_length",
    "n_positions",
    "max_context_length",
    "torch_dtype",
)


def make_proposer(
    asked: SpeculativeConfig, target: NeuronBaseForCausalLM, folder: Path | None
) -> Proposer:
    """Who proposes tokens to the loaded target.

    folder: that of the draft model or head.
    """
    if asked.method == "medusa":
        return MedusaHeads()
    if asked.method == "ngram":
        sizes = asked.prompt_lookup_max or 3, asked.prompt_lookup_min or 1
        return PromptLookup(asked.num_speculative_tokens, *sizes)
    assert folder is not None
    options = {name: getattr(target.neuron_config, name) for name in _AS_TARGET}
    options["tp_degree"] = asked.draft_tensor_parallel_size or 1
    options |= {"enable_bucketing": True, "ctx_batch_size": 1}
    if asked.method == "draft_model":
        return DraftModel(AutoModelForCausalLM.from_pretrained(folder, **options))
    head = AutoModelForCausalLM.from_pretrained(
        folder,
        is_eagle_draft=True,
        is_eagle3=asked.method == "eagle3",
        speculation_length=target.neuron_config.speculation_length,
        target_model_path=target.model_path,
        **options,
    )
    assert isinstance(head, NeuronDraftHead)
    return EagleHead(head)


class Drafts:
    """The proposals for the requests of a step, which vLLM hands back in the next one."""

    def __init__(self, target: NeuronBaseForCausalLM, proposer: Proposer) -> None:
        proposer.check(target)
        self._proposer, self._rule = proposer, make_seeded_rule(target, proposer)
        self._most = target.neuron_config.num_verified - 1
        self._longest = target.neuron_config.max_length

    def watch(self, seen: Sequence[Seen]) -> None:
        self._proposer.watch(seen)

    def propose(self, requests: Sequence[RunningRequest]) -> DraftTokenIds:
        """Tokens for each request, as many as it has room for."""
        wanted = [
            Wanted(request, max(0, min(self._most, self._longest - len(request.tokens))))
            for request in requests
        ]
        proposals = self._proposer.propose(wanted, self._rule)
        return DraftTokenIds(
            [request.id for request in requests],
            [
                proposal.within(row.most, row.most).tokens
                for row, proposal in zip(wanted, proposals, strict=True)
            ],
        )
