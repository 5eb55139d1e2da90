"""The head of the example learns, and is the one that nxdi loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from train_eagle_head import Head, loss_of, save, write_texts

from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import EagleHead
from tiny_eagle import load_head
from tiny_models import load_app, save_tiny, tiny_hf_model

OPTIONS: dict[str, Any] = {"seq_len": 48, "batch_size": 3, "speculation_length": 4}


def test_a_head_learns_what_its_target_writes(tmp_path: Path) -> None:
    """A few texts by heart: then most of what it proposes for them is right."""
    for name in ("target", "head"):
        (tmp_path / name).mkdir()
    model = tiny_hf_model("llama", seed=3)
    folder = save_tiny(model, tmp_path / "target")
    target = load_app(folder, enable_eagle_speculation=True, **OPTIONS)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    texts = write_texts(target, prompts, new_tokens=24)
    for text, prompt in zip(texts, prompts, strict=True):
        assert text.tokens[: len(prompt)].tolist() == prompt
        expected = model.model(text.tokens[None]).last_hidden_state[0]
        torch.testing.assert_close(text.features, expected, atol=1e-4, rtol=1e-4)

    torch.manual_seed(0)
    features = torch.cat([text.features for text in texts])
    head = Head(model.config, model.model.embed_tokens.weight.detach(), features)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(120):
        losses = [loss_of(head, model.lm_head.weight.detach(), text) for text in texts]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    save(head, folder, tmp_path / "head")
    batcher = ContinuousBatcher(
        target, proposer=EagleHead(load_head(tmp_path / "head", folder, **OPTIONS))
    )
    for prompt in prompts:
        batcher.add(prompt, RequestOptions(max_new_tokens=24))
    batcher.run()
    assert batcher.speculation is not None
    assert batcher.speculation.counts.tokens_per_step > 2
