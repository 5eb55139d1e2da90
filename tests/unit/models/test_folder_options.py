"""What a quantized folder decides, what may be said beside it, and NxDI's own state dicts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import nxdi
from nxdi.errors import ConfigError, UnsupportedError, WeightError
from nxdi.models.folder_options import with_folder_options
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.modules.quantization import quantized_names
from nxdi.types import Phase
from quantized_folders import KINDS, edit_quantization, save_quantized, write_tensors
from tiny_models import make_app, save_tiny, tiny_hf_model
from tolerances import LOGITS_FP32

OPTIONS: dict[str, Any] = {"backend": "eager", "seq_len": 64, "torch_dtype": "float32"}
IDS = torch.tensor([[5, 9, 3, 71, 20]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders quantized as DeepSeek-V3 is, but for the first layer's `o_proj`."""
    folder = tmp_path_factory.mktemp("folders")
    model = tiny_hf_model("llama", intermediate_size=96)
    for name in ("fp8", "int8 channel"):
        save_quantized(model, folder / name, KINDS[name], is_stored)
    return folder


def is_stored(module: str) -> bool:
    return module.endswith("proj") and module != "model.layers.0.self_attn.o_proj"


def options_of(folder: Path, **asked: Any) -> dict[str, Any]:
    return with_folder_options(NeuronLlamaForCausalLM, folder, {**OPTIONS, **asked})


def logits(folder: Path, **options: Any) -> Tensor:
    found = nxdi.AutoModelForCausalLM.from_pretrained(folder, **{**OPTIONS, **options})(IDS).logits
    assert found is not None
    return found


def copy_of(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    edit_quantization(target, **changes)
    return target


def test_what_a_folder_decides(folders: Path) -> None:
    found = options_of(folders / "fp8")
    assert found == {
        **OPTIONS,
        "quantized": True,
        "quantization_type": "blockwise_symmetric",
        "quantization_dtype": "f8e4m3",
        "quantization_block_size": [16, 8],
        "modules_to_not_convert": ["layers.0.self_attn.o_proj", "lm_head"],
    }
    assert options_of(folders / "fp8", quantized=True, quantization_dtype="f8e4m3") == found


def test_the_same_weights_widened_when_they_are_loaded(folders: Path) -> None:
    kept = logits(folders / "fp8")
    for options in ({"quantized": False}, {"modules_to_not_convert": ["mlp"]}):
        torch.testing.assert_close(
            logits(folders / "fp8", **options), kept, rtol=0, atol=LOGITS_FP32
        )
    some = make_app(folders / "fp8", **options_of(folders / "fp8", modules_to_not_convert=["mlp"]))
    assert {name.split(".")[2] for name in quantized_names(some.build(Phase.DECODE))} == {
        "self_attn"
    }


def test_a_compiled_model_knows_its_folder(folders: Path, tmp_path: Path) -> None:
    app = make_app(folders / "fp8", **options_of(folders / "fp8"))
    app.compile(tmp_path / "artifact", progress=False)
    again = NeuronLlamaForCausalLM(tmp_path / "artifact")
    again.load(tmp_path / "artifact")
    assert torch.equal(again(IDS).logits, logits(folders / "fp8"))


def test_tied_weights(tmp_path: Path) -> None:
    model = tiny_hf_model("llama", intermediate_size=96, tie_word_embeddings=True)
    reference = save_quantized(model, tmp_path / "model", KINDS["fp8"], is_stored)
    with torch.no_grad():
        expected = reference(IDS).logits[:, -1:]
    torch.testing.assert_close(logits(tmp_path / "model"), expected, rtol=0, atol=LOGITS_FP32)


@pytest.mark.parametrize("kind", ["int8 tensor", "int4 group"])
def test_scales_of_layers_that_are_split(kind: str, tmp_path: Path) -> None:
    """Phi-3 has queries, keys and values in one, and gates and values."""
    model = tiny_hf_model("phi3", intermediate_size=96)
    reference = save_quantized(
        model, tmp_path / "model", KINDS[kind], lambda module: module.endswith("proj")
    )
    with torch.no_grad():
        expected = reference(IDS).logits[:, -1:]
    torch.testing.assert_close(logits(tmp_path / "model"), expected, rtol=0, atol=LOGITS_FP32)


def test_scales_that_cannot_be_split(tmp_path: Path) -> None:
    model = tiny_hf_model("phi3", intermediate_size=96)
    folder = tmp_path / "model"
    save_quantized(model, folder, KINDS["fp8"], lambda module: module.endswith("proj"))
    with pytest.raises(UnsupportedError, match="their scales cannot follow"):
        logits(folder)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quantization_dtype": "int8"}, "was quantized with quantization_dtype='f8e4m3'"),
        ({"quantization_type": "per_channel_symmetric"}, "was quantized with quantization_type"),
        ({"quantization_block_size": [128, 128]}, r"was quantized with .*\[16, 8\]"),
    ],
)
def test_options_that_contradict_a_folder(
    asked: dict[str, Any], message: str, folders: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(folders / "fp8", **asked)


def test_a_folder_that_quantizes_another_model(folders: Path, tmp_path: Path) -> None:
    blocks = copy_of(folders / "fp8", tmp_path / "blocks", weight_block_size=[8, 8])
    with pytest.raises(WeightError, match=r"have shape \(4, 12\), .* must be \(8, 12\)"):
        options_of(blocks)
    other = copy_of(folders / "fp8", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    write_tensors(
        other,
        {key.replace(name, "model.layers.9.mlp.up_proj"): value for key, value in tensors.items()},
    )
    with pytest.raises(UnsupportedError, match=r"takes none: layers\.9\.mlp\.up_proj\.weight"):
        options_of(other)
    with pytest.raises(WeightError, match=r"missing .* layers\.0\.mlp\.up_proj\.weight"):
        logits(other, modules_to_not_convert=["layers.9"])


def test_a_checkpoint_without_scales(folders: Path, tmp_path: Path) -> None:
    folder = copy_of(folders / "fp8", tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    write_tensors(folder, {k: v for k, v in tensors.items() if "0.mlp.up_proj.weight_s" not in k})
    with pytest.raises(WeightError, match=r"layers\.0\.mlp\.up_proj\.weight has no scales"):
        options_of(folder)


# NxDI's own.


def state_of_nxdi(folder: Path, kind: str) -> dict[str, Tensor]:
    """As its `save_quantized_state_dict` has it: no prefix, and `scale`."""
    tensors = load_file(folder / "model.safetensors")
    names = {name: name.removeprefix("model.") for name in tensors}
    per_tensor = kind == "per_tensor_symmetric"
    state = {}
    for name, tensor in tensors.items():
        if name.endswith("weight_scale"):
            scale = names[name].replace("weight_scale", "scale")
            state[scale] = torch.tensor([0.01]) if per_tensor else tensor.float()
        else:
            state[names[name]] = tensor
    return state


@pytest.mark.parametrize("kind", ["per_tensor_symmetric", "per_channel_symmetric"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_nxdi_saves(kind: str, form: str, folders: Path, tmp_path: Path) -> None:
    plain = save_tiny(tiny_hf_model("llama", intermediate_size=96), tmp_path / "plain")
    state = state_of_nxdi(folders / "int8 channel", kind)
    path = tmp_path / "quantized"
    if form == "folder":
        path.mkdir()
        write_tensors(path, state)
    else:
        torch.save(state, path)
    app = make_app(
        plain,
        **OPTIONS,
        quantized=True,
        quantization_type=kind,
        quantized_checkpoints_path=str(path),
        modules_to_not_convert=["lm_head", "layers.0.self_attn.o_proj"],
    )
    app.compile(tmp_path / "artifact", progress=False)
    app.load(tmp_path / "artifact")
    reference: Any = tiny_hf_model("llama", intermediate_size=96)
    for name, module in reference.named_modules():
        own = name.removeprefix("model.")
        if f"{own}.scale" in state:
            module.weight.data = state[f"{own}.weight"].float() * state[f"{own}.scale"]
    with torch.no_grad():
        expected = reference(IDS).logits[:, -1:]
    torch.testing.assert_close(app(IDS).logits, expected, rtol=0, atol=LOGITS_FP32)


def test_what_nxdi_saved_in_another_way(folders: Path, tmp_path: Path) -> None:
    plain = save_tiny(tiny_hf_model("llama", intermediate_size=96), tmp_path / "plain")
    path = tmp_path / "quantized"
    path.mkdir()
    write_tensors(path, state_of_nxdi(folders / "int8 channel", "per_channel_symmetric"))
    common = {**OPTIONS, "quantized": True, "quantized_checkpoints_path": str(path)}
    with pytest.raises(WeightError, match=r"by quantization_config it must be \(\) or \(1,\)"):
        make_app(plain, **common).checked_weights()
    with pytest.raises(WeightError, match=r"stored as torch\.int8"):
        make_app(plain, **common, quantization_dtype="f8e4m3").checked_weights()
