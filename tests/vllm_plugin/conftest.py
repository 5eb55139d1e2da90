"""Tests with vLLM itself, on a tiny random model whose text is bytes. Run by `make test-vllm`."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import make_byte_tokenizer
from tiny_models import tiny_hf_model

# vLLM reads these when it is imported.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine in this process
    VLLM_LOGGING_LEVEL="ERROR",
)

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*"]

EOS = 256
MAX_LEN = 128


@pytest.fixture(scope="session")
def reference() -> Any:
    """A model of bytes and an end of sequence, as transformers runs it."""
    return tiny_hf_model("llama", vocab_size=257, eos_token_id=EOS, pad_token_id=EOS)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, reference: Any) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    reference.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """One token per byte, and <eos>."""
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    tokenizer = make_byte_tokenizer(template, eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(folder)


@pytest.fixture
def make_llm(model_dir: Path) -> Iterator[Callable[..., Any]]:
    """Engines on the tiny model; each ends the one before."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    made: list[Any] = []

    def end() -> None:
        if made:
            made.pop().llm_engine.engine_core.shutdown()
            gc.collect()
            cleanup_dist_env_and_memory()

    def make(model: Path | None = None, **options: Any) -> Any:
        end()
        neuron = {"backend": "eager", **options.pop("neuron", {})}
        options = {"max_num_seqs": 4, "max_model_len": MAX_LEN, "dtype": "float32", **options}
        made.append(
            LLM(
                str(model or model_dir),
                additional_config={"override_neuron_config": neuron},
                **options,
            )
        )
        return made[0]

    yield make
    end()
