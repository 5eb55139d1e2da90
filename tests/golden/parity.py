"""What transformers answers, and the comparison with it: greedy tokens and logits of each step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from golden.table import Variant
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_models import VOCAB_SIZE, load_app, save_tiny, tiny_hf_model
from tolerances import LOGITS_FP32

PAD_TOKEN = 0
NEW_TOKENS = 32
# Decode buckets that differ from the prefill buckets: every generation below crosses some of them.
BUCKETS: dict[str, Any] = {
    "seq_len": 96,
    "max_context_length": 64,
    "enable_bucketing": True,
    "context_encoding_buckets": [16, 32, 64],
    "token_generation_buckets": [20, 40, 60, 96],
}
_LEAST_VARIETY = 8  # distinct tokens in 32: fewer, and a model that ignores positions might pass


@dataclass(frozen=True)
class Reference:
    """transformers' greedy continuations of prompts of several lengths.

    dtype: of the weights in `folder`.
    By prompt length: prompts int [length], tokens int [new], logits float32 [new, VOCAB_SIZE].
    """

    folder: Path
    dtype: str
    prompts: dict[int, Tensor]
    tokens: dict[int, Tensor]
    logits: dict[int, Tensor]

    def save(self, file: Path) -> None:
        """Write everything but the folder, for another process."""
        torch.save((self.dtype, self.prompts, self.tokens, self.logits), file)

    @classmethod
    def load(cls, folder: Path, file: Path) -> Reference:
        """Read what `save` wrote."""
        return cls(folder, *torch.load(file, weights_only=True))

    def batch(self, lengths: Sequence[int], side: str) -> tuple[Tensor, Tensor]:
        """These prompts as (input_ids, attention_mask) [B, longest], padded on one side."""
        ids = torch.full((len(lengths), max(lengths)), PAD_TOKEN)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            place = slice(-length, None) if side == "left" else slice(length)
            ids[row, place], mask[row, place] = self.prompts[length], 1
        return ids, mask


def make_reference(
    variant: Variant, folder: Path, lengths: Sequence[int], num_new: int = NEW_TOKENS
) -> Reference:
    """Save the model of a variant to `folder` and let transformers continue its prompts."""
    model = tiny_hf_model(variant.family, variant.seed, **variant.overrides)
    save_tiny(model.to(getattr(torch, variant.dtype)), folder)
    # The definition of attention: transformers' faster ones leave out Gemma 2's cap of the scores.
    model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    reference = Reference(folder, variant.dtype, make_prompts(lengths, variant.seed), {}, {})
    for batch in [[n] for n in lengths] if variant.alone else [lengths]:
        continue_prompts(model, reference, batch, num_new, use_cache=not variant.alone)
    check_reference(reference)
    return reference


def make_prompts(lengths: Sequence[int], seed: int) -> dict[int, Tensor]:
    """Random prompts by their lengths."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randint(1, VOCAB_SIZE, (n,), generator=generator) for n in lengths}


def continue_prompts(
    model: PreTrainedModel,
    reference: Reference,
    lengths: Sequence[int],
    num_new: int = NEW_TOKENS,
    use_cache: bool = True,
) -> None:
    """Let transformers continue the prompts of these lengths, as one batch."""
    ids, mask = reference.batch(lengths, "left")
    generate: Any = model.generate
    out = generate(
        ids,
        attention_mask=mask,
        max_new_tokens=num_new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        use_cache=use_cache,
    )
    logits = torch.stack(out.logits, dim=1)
    for row, length in enumerate(lengths):
        reference.tokens[length] = out.sequences[row, -num_new:]
        reference.logits[length] = logits[row]


def check_reference(reference: Reference) -> None:
    """A reference must be able to fail a test: varied, and with a clear winner at every step."""
    for length, tokens in reference.tokens.items():
        best, second = reference.logits[length].topk(2).values.unbind(dim=-1)
        assert len(tokens.unique()) >= min(_LEAST_VARIETY, len(tokens) // 3), (
            f"length {length}: {tokens}"
        )
        assert float((best - second).min()) > 2 * LOGITS_FP32, (
            f"length {length} has a near tie; take another seed"
        )


def load(
    reference: Reference, tp_degree: int, batch_size: int = 3, **options: Any
) -> NeuronBaseForCausalLM:
    """The nxdi model of a reference, with `BUCKETS` unless the options say otherwise."""
    options = {**BUCKETS, "batch_size": batch_size, "torch_dtype": reference.dtype, **options}
    return load_app(reference.folder, tp_degree=tp_degree, **options)


def check_all_buckets(app: NeuronBaseForCausalLM, reference: Reference) -> None:
    """Prompts around each prefill edge, padded on either side, continued across decode edges."""
    for length in reference.prompts:
        check_prefill(app, reference, [length], "right")
    check_prefill(app, reference, [17, 1, 64], "left")
    check_generate(app, reference, [1, 15, 16], "left")
    check_generate(app, reference, [32, 17, 31], "right")
    check_generate(app, reference, [63, 64, 33], "left")


def check_prefill(
    app: NeuronBaseForCausalLM, reference: Reference, lengths: Sequence[int], side: str
) -> None:
    """Compare the logits of one prefill step."""
    ids, mask = reference.batch(lengths, side)
    logits = app(ids, attention_mask=mask).logits
    assert logits is not None
    for row, length in enumerate(lengths):
        check_logits(logits[row, -1], reference.logits[length][0])


def check_generate(
    app: NeuronBaseForCausalLM, reference: Reference, lengths: Sequence[int], side: str
) -> None:
    """Compare all greedy tokens, and the logits each was chosen from."""
    ids, mask = reference.batch(lengths, side)
    num_new = len(reference.tokens[lengths[0]])
    out = HuggingFaceGenerationAdapter(app).generate(
        ids,
        attention_mask=mask,
        max_new_tokens=num_new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack(out.logits, dim=1)
    for row, length in enumerate(lengths):
        check_logits(logits[row], reference.logits[length])
        assert out.sequences[row, -num_new:].tolist() == reference.tokens[length].tolist()


def check_logits(actual: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance for float32."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS_FP32)


def check_seeded(app: NeuronBaseForCausalLM, plain: NeuronBaseForCausalLM) -> None:
    """Both sample the same tokens with the same seeds; 40 random prompts, in fours."""
    draw = random.Random(5)
    for start in range(0, 40, 4):
        ids = torch.tensor([[draw.randrange(VOCAB_SIZE) for _ in range(12)] for _ in range(4)])
        asked = {"do_sample": True, "top_k": 30, "temperature": 0.8, "max_new_tokens": 13}
        seeds = list(range(start, start + 4))
        found, expected = (
            HuggingFaceGenerationAdapter(model).generate(ids, **asked, seeds=seeds)
            for model in (app, plain)
        )
        assert torch.equal(found, expected)
