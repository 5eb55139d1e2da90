"""What tests of generate() share: one tiny model, as transformers and as nxdi run it."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fake_model import FakeModel
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_models import VOCAB_SIZE, load_app, save_tiny, tiny_hf_model

BATCH_SIZE = 6


@pytest.fixture(params=["in turn", "ahead"])
def either_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batcher runs its steps either way."""
    monkeypatch.setattr(FakeModel, "async_mode", request.param == "ahead")


@dataclass(frozen=True)
class Tiny:
    """A model folder, transformers' model of it, and three prompts padded on the left."""

    folder: Path
    hf: PreTrainedModel
    ids: Tensor
    mask: Tensor

    def adapter(self, **options: Any) -> HuggingFaceGenerationAdapter:
        """The same model in nxdi, for prompts of 16 tokens and 48 tokens in all."""
        lengths = {"seq_len": 48, "max_context_length": 16, "batch_size": BATCH_SIZE}
        return HuggingFaceGenerationAdapter(load_app(self.folder, **{**lengths, **options}))

    def greedy(self, num_new: int = 20) -> Tensor:
        """What transformers generates greedily, new tokens only [3, num_new]."""
        options = {"max_new_tokens": num_new, "do_sample": False}
        return self.hf.generate(self.ids, attention_mask=self.mask, **options)[
            :, self.ids.shape[1] :
        ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    model = tiny_hf_model("llama", seed=3)
    folder = save_tiny(model, tmp_path_factory.mktemp("tiny"))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCAB_SIZE, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :4] = ids[0, :4] = 0
    mask[2, :1] = ids[2, :1] = 0
    return Tiny(folder, model, ids, mask)


@pytest.fixture(scope="session")
def host(tiny: Tiny) -> HuggingFaceGenerationAdapter:
    """The model with logits as its output: sampling is done on the host."""
    return tiny.adapter()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One printable character per token."""
    characters = (string.printable[:95] + "\n\t")[:VOCAB_SIZE]
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(characters)}, []))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)
