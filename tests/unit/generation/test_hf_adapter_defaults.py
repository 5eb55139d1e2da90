"""generate() with what a model folder says about generation, and the whole way from a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from nxdi.errors import UnsupportedError
from nxdi.models.config import NeuronConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig, NeuronLlamaForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter, load_pretrained_config
from tiny_models import load_app


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    """A copy of the model folder, to be changed; without defaults for generation."""
    copy = tmp_path / "model"
    shutil.copytree(tiny.folder, copy, ignore=shutil.ignore_patterns("artifact", ".*"))
    (copy / "generation_config.json").unlink(missing_ok=True)
    return copy


def write_defaults(folder: Path, **defaults: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(defaults))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def both(folder: Path, tiny: Any, **options: Any) -> tuple[list[Any], list[Any]]:
    """What transformers and nxdi generate from a folder, with the same random seed."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapter = HuggingFaceGenerationAdapter(load_app(folder, seq_len=48, batch_size=3))
    outputs = []
    for generate in (hf.generate, adapter.generate):
        torch.manual_seed(0)
        outputs.append(generate(tiny.ids, attention_mask=tiny.mask, **options).tolist())
    return outputs[0], outputs[1]


def test_defaults_of_the_folder(tiny: Any, folder: Path) -> None:
    eos = int(tiny.greedy()[1, 4])
    write_defaults(
        folder, max_new_tokens=9, repetition_penalty=1.3, eos_token_id=[eos, 2], pad_token_id=1
    )
    expected, actual = both(folder, tiny)
    assert actual == expected
    assert len(actual[0]) == 9 + 9


def test_sampling_by_default(tiny: Any, folder: Path) -> None:
    write_defaults(folder, do_sample=True, temperature=0.7, top_k=20, top_p=0.9)
    expected, actual = both(folder, tiny, max_new_tokens=15)
    assert actual == expected
    greedy, also_greedy = both(folder, tiny, max_new_tokens=15, do_sample=False)
    assert also_greedy == greedy
    assert greedy != expected


def test_a_generation_config_is_completed_from_the_folder(tiny: Any, folder: Path) -> None:
    write_defaults(folder, repetition_penalty=1.7, eos_token_id=4)
    config = GenerationConfig(max_new_tokens=12)
    expected, actual = both(folder, tiny, generation_config=config)
    assert actual == expected


@pytest.mark.parametrize("pad_token_id", [None, 0, 7])
def test_special_tokens_of_config_json(pad_token_id: int | None, tiny: Any, folder: Path) -> None:
    """Without a pad token, finished rows are filled with the end-of-sequence token."""
    eos = int(tiny.greedy()[1, 4])
    edit_config(folder, eos_token_id=eos, pad_token_id=pad_token_id)
    expected, actual = both(folder, tiny, max_new_tokens=20, do_sample=False)
    assert actual == expected
    assert actual[1][-1] == (eos if pad_token_id is None else pad_token_id)


def test_old_configs_that_hold_generation_options(tiny: Any, folder: Path) -> None:
    edit_config(folder, temperature=0.6, top_p=0.9, max_length=30)
    expected, actual = both(folder, tiny, max_new_tokens=10, do_sample=True)
    assert actual == expected


def test_a_default_that_is_not_supported_is_refused(tiny: Any, folder: Path) -> None:
    write_defaults(folder, num_beams=4, max_new_tokens=3)
    adapter = HuggingFaceGenerationAdapter(load_app(folder, seq_len=48, batch_size=3))
    with pytest.raises(UnsupportedError, match=r"num_beams=4"):
        adapter.generate(tiny.ids)
    with pytest.raises(UnsupportedError, match=r"num_beams=4"):
        adapter.generate(tiny.ids, generation_config=GenerationConfig(max_new_tokens=3))
    out = adapter.generate(tiny.ids, attention_mask=tiny.mask, num_beams=1)
    assert out[:, 9:].tolist() == tiny.greedy(3).tolist()


def test_the_path_of_an_nxdi_script(tiny: Any, folder: Path, tmp_path: Path) -> None:
    """The program that users of NxD Inference write, with its import roots renamed."""
    model_dir, artifact_dir = str(folder), str(tmp_path / "artifact")
    ids, mask = tiny.ids[:2], tiny.mask[:2]
    generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    neuron_config = NeuronConfig(
        batch_size=2,
        seq_len=256,
        max_context_length=128,
        tp_degree=1,
        torch_dtype="float32",
        enable_bucketing=True,
        backend="eager",
    )
    config = LlamaInferenceConfig(neuron_config, load_config=load_pretrained_config(model_dir))
    model = NeuronLlamaForCausalLM(model_dir, config)
    model.compile(artifact_dir)
    model.load(artifact_dir)
    out = HuggingFaceGenerationAdapter(model).generate(
        ids, attention_mask=mask, generation_config=generation_config, max_new_tokens=32
    )
    expected = tiny.hf.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=32)
    assert out.tolist() == expected.tolist()
