"""Folders of quantized weights: vLLM leaves them to nxdi."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nxdi
from nxdi.tools.quantization import quantize_folder
from vllm_plugin.conftest import save_tokenizer
from vllm_plugin.test_offline import params, run, tokens_of

PROMPTS = [[5, 6, 7], [20, 30, 40, 50, 60]]
CONTEXT, NEW = 32, 8


def greedy(folder: Path, prompt: list[int]) -> list[int]:
    """What nxdi alone answers."""
    model = nxdi.AutoModelForCausalLM.from_pretrained(
        folder, backend="eager", seq_len=CONTEXT, torch_dtype="float32"
    )
    found: list[int] = []
    logits = model(torch.tensor([prompt])).logits
    for place in range(len(prompt), len(prompt) + NEW):
        assert logits is not None
        found.append(int(logits[0, -1].argmax()))
        token, position = torch.tensor([[found[-1]]]), torch.tensor([[place]])
        logits = model(token, position_ids=position).logits
    return found


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_folder_of_nxdi_quantize(
    dtype: str, make_llm: Any, model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "quantized"
    quantize_folder(
        model_dir,
        folder,
        quantization_dtype=dtype,
        quantization_type="per_channel_symmetric",
    )
    save_tokenizer(folder)
    llm = make_llm(folder)
    found = tokens_of(run(llm, PROMPTS, params(max_tokens=NEW, ignore_eos=True)))
    assert found == [greedy(folder, prompt) for prompt in PROMPTS]


def test_a_folder_as_deepseek_has_it(make_llm: Any, model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(
        model_dir, tmp_path / "fp8", ignore=shutil.ignore_patterns("neuron-compiled-artifacts")
    )
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.full((-(-rows // 16), -(-columns // 16)), 0.9)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
    }
    (folder / "config.json").write_text(json.dumps(config))
    found = tokens_of(run(make_llm(folder), PROMPTS, params(max_tokens=NEW, ignore_eos=True)))
    assert found == [greedy(folder, prompt) for prompt in PROMPTS]
