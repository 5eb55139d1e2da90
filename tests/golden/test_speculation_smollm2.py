"""A real model in every mode of speculation: SmolLM2-135M-Instruct, 20 prompts, greedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from golden.test_smollm2 import EXAMPLES, PROMPTS
from nxdi.generation import ContinuousBatcher, RequestOptions
from speculation_modes import MODES, NUM_HEADS, Folders
from tiny_eagle import PlainHead
from tiny_medusa import fitted_heads, save_heads
from tree_proposers import run

NEW_TOKENS = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folders, list[list[int]], list[int]]:
    """The target and its drafts; whole sequences of transformers, and the lengths of the prompts.

    The draft is the target without some layers. Heads are fitted to these sequences.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        from fetch_smollm2 import fetch_smollm2

        source = fetch_smollm2().resolve()
    root = tmp_path_factory.mktemp("smollm2")
    folders = Folders(*(root / name for name in ("target", "draft", "eagle", "eagle3")))
    for folder in (folders.target, folders.eagle, folders.eagle3):
        folder.mkdir()
    for file in source.iterdir():
        (folders.target / file.name).symlink_to(file)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    found = model.generate(**inputs, **options, pad_token_id=0)
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    whole = [
        row[-length - NEW_TOKENS :] for row, length in zip(found.tolist(), lengths, strict=True)
    ]
    save_heads(folders.target, fitted_heads(model, whole, NUM_HEADS))
    for folder, is_eagle3 in ((folders.eagle, False), (folders.eagle3, True)):
        head = PlainHead(model, is_eagle3, num_tokens=model.config.vocab_size)
        head.fit(whole).save(folder)
    layers = model.model.layers
    del layers[14:18]
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(layers)
    model.save_pretrained(folders.draft)
    return folders, whole, lengths


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_greedy_tokens_equal_transformers(mode: str, made: Any) -> None:
    folders, whole, lengths = made
    options = {"seq_len": 64, "max_context_length": 32, "batch_size": 10}
    loaded = MODES[mode].load(folders, MODES[mode].usual, **options)
    batcher = ContinuousBatcher(loaded.target, proposer=loaded.proposer)
    asked = [
        (tokens[:length], RequestOptions(max_new_tokens=NEW_TOKENS, ignore_eos=True))
        for tokens, length in zip(whole, lengths, strict=True)
    ]
    found = run(batcher, asked)
    assert found == [tokens[length:] for tokens, length in zip(whole, lengths, strict=True)]
    assert len({token for tokens in found for token in tokens}) > 100
    assert batcher.speculation is not None
    counts = batcher.speculation.counts
    assert 0 < sum(counts.kept.values()) < sum(counts.proposed.values())
