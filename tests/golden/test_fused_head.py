"""A head in the graph gives transformers' tokens: any batch, tp degree, length and cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from golden.parity import BUCKETS, NEW_TOKENS, Reference, check_seeded
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_eagle import KINDS, PlainHead, load_fused_head, make_fused_head, save_agreeing
from tiny_models import COMPILED, VOCAB_SIZE, load_app, tiny_hf_model

Get = Callable[[str], Reference]
BATCHES = {1: [17], 2: [31, 1], 8: [1, 16, 33, 63, 2, 15, 32, 7]}
ALL = [(batch, tp, length) for batch in BATCHES for tp in (1, 2) for length in range(2, 8)]
SAMPLES: dict[str, Any] = {"on_device_sampling_config": {"dynamic": True}}


@dataclass(frozen=True)
class Pair:
    """The folders of a target and its head, and the target's tokens for prompts by their length."""

    target: Path
    head: Path
    options: dict[str, Any]
    prompts: dict[int, list[int]]
    tokens: dict[int, list[int]]

    def load(self, **own: Any) -> NeuronBaseForCausalLM:
        return load_fused_head(self.target, self.head, **{**BUCKETS, **own}, **self.options)

    def check(self, model: NeuronBaseForCausalLM, lengths: Sequence[int]) -> float:
        """Returns: the tokens that a step of a row has brought."""
        names: list[str] = []
        model.runner.observers.append(lambda spec, inputs: names.append(spec.name))
        longest = max(lengths)
        ids = torch.tensor([[0] * (longest - n) + self.prompts[n] for n in lengths])
        mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
        out = HuggingFaceGenerationAdapter(model).generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
        )
        model.runner.observers.clear()
        assert out[:, longest:].tolist() == [self.tokens[length] for length in lengths]
        assert any(name.startswith("fused_speculation_model") for name in names)
        return NEW_TOKENS / sum(not name.startswith("context_enc") for name in names)


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """By the kind of the head."""

    @cache
    def get(kind: str) -> Pair:
        plain, *folders = save_agreeing(tmp_path_factory.mktemp(kind), **KINDS[kind])
        draw = random.Random(3)
        prompts = {
            length: [draw.randrange(1, VOCAB_SIZE) for _ in range(length)]
            for length in sorted({length for batch in BATCHES.values() for length in batch})
        }
        tokens = {length: continuation(plain, prompt) for length, prompt in prompts.items()}
        return Pair(*folders, KINDS[kind], prompts, tokens)

    return get


def continuation(plain: PlainHead, prompt: list[int]) -> list[int]:
    (target,) = plain.target
    ids = torch.tensor([prompt])
    out = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
    )
    return [int(token) for token in out[0, len(prompt) :]]


def walk(pair: Pair, cases: Sequence[tuple[int, int, int]], **own: Any) -> None:
    of_head = own.pop("draft_options", {})
    for index, (batch_size, tp, length) in enumerate(cases):
        sizes = {"batch_size": batch_size, "tp_degree": tp, "speculation_length": length}
        draft = {"draft_options": {"tp_degree": 1 if index % 2 else tp, **of_head}}
        brought = pair.check(pair.load(**sizes, **own, **draft), BATCHES[batch_size])
        assert brought > 1


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("eagle", (2, 2, 4)),
        pytest.param("eagle3", (8, 1, 3), marks=pytest.mark.slow),
        pytest.param("eagle3", (1, 1, 7), marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_transformers(
    kind: str, case: tuple[int, int, int], pair_of: Callable[[str], Pair]
) -> None:
    walk(pair_of(kind), [case])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_degree_and_length(kind: str, pair_of: Callable[[str], Pair]) -> None:
    walk(pair_of(kind), ALL if kind == "eagle3" else ALL[1::3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "own",
    [
        {"is_block_kv_layout": True, "pa_block_size": 8},
        {"is_block_kv_layout": True, "pa_block_size": 8, "is_prefix_caching": True},
        {"windowed_context_encoding_size": 16},
        {"token_generation_buckets": [4, 20, 96]},  # one as long as a step
        # Only the head's weights and cache, and so no other tokens.
        {"draft_options": {"quantized": True, "quantization_type": "per_channel_symmetric"}},
        {"draft_options": {"kv_cache_quant": True, "torch_dtype": torch.float16}},
    ],
)
def test_other_caches_and_weights(
    kind: str, own: dict[str, Any], pair_of: Callable[[str], Pair]
) -> None:
    walk(pair_of(kind), [(2, 2, 4), (8, 1, 3)], **own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mistral", "gemma3", "mixtral", "gpt_oss"])
def test_targets_with_windows_and_experts(
    family: str, kind: str, reference_of: Get, tmp_path: Path
) -> None:
    """The head is a stranger's, of Llama's layout, and so rarely right."""
    reference = reference_of(family)
    head = PlainHead(tiny_hf_model("llama", num_hidden_layers=5), **KINDS[kind])
    folder = head.save(tmp_path, has_ends=True)
    lengths = [1, 16, 33, 63]
    prompts = {length: reference.prompts[length].tolist() for length in lengths}
    tokens = {length: reference.tokens[length].tolist() for length in lengths}
    pair = Pair(reference.folder, folder, KINDS[kind], prompts, tokens)
    for tp, length in ((1, 4), (2, 5)):
        pair.check(pair.load(batch_size=4, tp_degree=tp, speculation_length=length), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tp_degree", [1, 2])
def test_random_prompts_sampled_with_seeds(
    tp_degree: int, kind: str, pair_of: Callable[[str], Pair]
) -> None:
    """The tokens of plain decoding with the same seeds, up to the end of each row's room."""
    sizes: dict[str, Any] = {"seq_len": 24, "max_context_length": 12, "batch_size": 4}
    options = {**sizes, **SAMPLES, "tp_degree": tp_degree}
    plain = load_app(pair_of(kind).target, **options)
    fused = pair_of(kind).load(
        **options, context_encoding_buckets=None, token_generation_buckets=None
    )
    check_seeded(fused, plain)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("kind", "tp_degree"), [("eagle", 1), ("eagle3", 2)])
def test_compiled_graphs(
    kind: str, tp_degree: int, pair_of: Callable[[str], Pair], tmp_path: Path
) -> None:
    """Saved, and loaded by an application that knows only the artefact."""
    pair = pair_of(kind)
    options = {**COMPILED, "tp_degree": tp_degree, "speculation_length": 3, **pair.options}
    made = make_fused_head(pair.target, pair.head, **options, draft_options={"tp_degree": 1})
    made.compile(tmp_path / "artifact", progress=False)
    model = NeuronLlamaForCausalLM(tmp_path / "artifact")
    model.load(tmp_path / "artifact")
    assert pair.check(model, [31, 1]) > 1
