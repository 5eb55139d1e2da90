"""generate() with speculation: what transformers has prepared, as rows and a rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.generation.ahead import Starter
from nxdi.generation.choosers import Chooser, HostChooser
from nxdi.generation.loop import Generated, Streamer
from nxdi.generation.rows import row_tables
from nxdi.generation.speculation.draft import DraftModel
from nxdi.generation.speculation.eagle import EagleHead
from nxdi.generation.speculation.fused import InGraph, make_seeded_rule
from nxdi.generation.speculation.lookup import PromptLookup
from nxdi.generation.speculation.loop import Batch, GeneratedRow, speculative_loop
from nxdi.generation.speculation.own import proposer_of
from nxdi.generation.speculation.proposals import Proposer, Rule
from nxdi.generation.speculation.rules import ProcessedRule
from nxdi.generation.speculation.step import Speculation
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.draft_head import NeuronDraftHead

_BY_BATCH = "PrefixConstrainedLogitsProcessor"  # asks for a row by its place in the batch


def make_lookup(model: NeuronBaseForCausalLM, config: GenerationConfig) -> Proposer:
    """What prompt_lookup_num_tokens and max_matching_ngram_size ask for.

    To NxDI prompt_lookup_num_tokens asks for the draft model in the graphs, if there is one.
    """
    num_tokens, length = config.prompt_lookup_num_tokens, model.neuron_config.speculation_length
    if model.neuron_config.proposes_in_graph:
        if num_tokens != length:
            raise ConfigError(
                f"prompt_lookup_num_tokens={num_tokens}, but the graphs of this model propose and "
                f"verify speculation_length={length} tokens; pass that, or nothing"
            )
        return InGraph(model.neuron_config)
    size = config.max_matching_ngram_size
    return PromptLookup(
        config.prompt_lookup_num_tokens, **({} if size is None else {"max_ngram": size})
    )


def choose_proposer(
    model: NeuronBaseForCausalLM, asked: Proposer | None, chooser: Chooser, done: Generated
) -> Proposer | None:
    """Who proposes tokens in one generate() call; None: nobody.

    Graphs with a draft model do so unasked, but not where the host is to choose the tokens; and
    Medusa heads, but not where scores are to be returned.
    """
    config = model.neuron_config
    is_on_host = isinstance(chooser, HostChooser) and config.proposes_in_graph
    has_scores = done.logits is not None or done.scores is not None
    if asked is None and (is_on_host or (has_scores and config.is_medusa)):
        return None
    return proposer_of(model, asked)


def make_draft(model: Any) -> Proposer:
    """The draft model or EAGLE head that is given as assistant_model: loaded, or its adapter.

    Raises: ConfigError if it is none of nxdi's.
    """
    draft = getattr(model, "neuron_model", model)
    if not isinstance(draft, NeuronBaseForCausalLM):
        raise ConfigError(
            f"assistant_model is a {type(model).__name__}; it must be a model that nxdi has "
            "loaded, such as AutoModelForCausalLM.from_pretrained returns"
        )
    return EagleHead(draft) if isinstance(draft, NeuronDraftHead) else DraftModel(draft)


def speculative_decode_loop(  # noqa: PLR0913  as decode_loop, and who proposes
    model: NeuronBaseForCausalLM,
    done: Generated,
    attention_mask: Tensor,
    *,
    chooser: Chooser,
    stopping: StoppingCriteriaList,
    pad_token_id: int | None,
    starter: Starter,
    proposer: Proposer,
    streamer: Streamer | None = None,
) -> None:
    """As `decode_loop`, in fewer steps.

    Raises: UnsupportedError for outputs or processors that need rows of equal length.
    """
    speculation = Speculation(model, proposer)
    if done.logits is not None or done.scores is not None:
        raise UnsupportedError(
            "output_scores and output_logits are not supported with speculation, where rows go on "
            "by different numbers of tokens; leave them out, or assistant_model and "
            "prompt_lookup_num_tokens"
        )
    batch = Batch(_rows(model, done.input_ids, attention_mask, chooser), pad_token_id)
    rule = _rule(chooser, speculation, len(batch.rows))
    speculative_loop(
        speculation, rule, batch, stopping=stopping, starter=starter, streamer=streamer
    )
    new = batch.new_tokens().to(done.input_ids.dtype)
    done.input_ids = torch.cat([done.input_ids, new], dim=1)


def _rule(chooser: Chooser, speculation: Speculation, num_rows: int) -> Rule:
    if not isinstance(chooser, HostChooser):
        return make_seeded_rule(speculation.model, speculation.proposer)
    if isinstance(speculation.proposer, InGraph):
        raise UnsupportedError(
            "the graph decides which proposed tokens are kept, and this request chooses tokens on "
            "the host; leave out prompt_lookup_num_tokens, or the options beyond the graph's "
            "sampling"
        )
    names = {type(processor).__name__ for processor in chooser.processors}
    if _BY_BATCH in names and num_rows > 1:
        raise UnsupportedError(
            f"{_BY_BATCH} (prefix_allowed_tokens_fn) takes one row with speculation, "
            f"not {num_rows}; pass the prompts one by one"
        )
    return ProcessedRule(chooser.processors, chooser.do_sample)


def _rows(
    model: NeuronBaseForCausalLM, input_ids: Tensor, mask: Tensor, chooser: Chooser
) -> list[GeneratedRow]:
    config, num_rows = model.neuron_config, len(input_ids)
    params: Any = chooser.inputs.get("sampling_params")
    params = [(1, 1.0, 1.0)] * num_rows if params is None else map(tuple, params.tolist())
    seeds: Any = chooser.inputs.get("seeds")
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (num_rows,)).tolist()
    tables = row_tables(config, num_rows)
    rows = zip(input_ids, mask.bool(), tables, seeds, params, strict=True)
    return [
        GeneratedRow(index, table, ids, ids[is_real][: config.longest_prompt].tolist(), seed, given)
        for index, (ids, is_real, table, seed, given) in enumerate(rows)
    ]
