"""A head in the graphs of its target: which options, weights and memory they have."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi.config import FusedSpecNeuronConfig, NeuronConfig
from nxdi.errors import ConfigError, WeightError
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.eagle3.modeling_eagle3 import NeuronEagle3ForCausalLM
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.types import Phase
from tiny_eagle import KINDS, load_fused_head, make_fused_head, save_agreeing
from tiny_models import make_app, planned_bytes, save_tiny, tiny_hf_model

SHORT: dict[str, Any] = {"seq_len": 32, "max_context_length": 8, "batch_size": 2}
BLOCKS: dict[str, Any] = {"is_block_kv_layout": True, "pa_block_size": 8}
EAGLE3: dict[str, Any] = {**SHORT, **KINDS["eagle3"]}
HIDDEN, FLOAT = 64, 4
Folders = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Of the target and of the head, by kind."""
    return {
        kind: save_agreeing(tmp_path_factory.mktemp(kind), **options)[1:]
        for kind, options in KINDS.items()
    }


def make_head(folders: tuple[Path, Path], **options: Any) -> NeuronApplicationBase:
    """The head as a model of its own."""
    target, folder = folders
    name = "eagle3" if options.get("is_eagle3") else "eagle"
    head_cls: Any = AutoModelForCausalLM.class_for(folder, name)
    given = {"backend": "eager", "torch_dtype": torch.float32, "is_eagle_draft": True, **options}
    config = head_cls.get_config_cls().from_pretrained(
        folder, NeuronConfig(**given), target_model_path=str(target)
    )
    made: NeuronApplicationBase = head_cls(folder, config)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("own", "num_places"),
    [({}, 2 + 1), ({"tp_degree": 2}, 2 + 1), ({**BLOCKS, "pa_num_blocks": 5}, 5 + 1)],
)
def test_memory_is_that_of_both_and_of_the_features_kept(
    kind: str, own: dict[str, Any], num_places: int, folders: Folders
) -> None:
    options = {**SHORT, **own, **KINDS[kind]}
    fused = make_fused_head(*folders[kind], **options)
    plain = make_app(folders[kind][0], **{**SHORT, **own})
    features = num_places * HIDDEN * (3 if kind == "eagle3" else 1) * FLOAT * fused.num_ranks
    alone = planned_bytes(make_head(folders[kind], **options))
    assert planned_bytes(fused) == planned_bytes(plain) + alone + features


def test_one_budget_pays_for_all_blocks(folders: Folders) -> None:
    """And for the features that each block keeps."""
    app = make_fused_head(*folders["eagle3"], **EAGLE3, **BLOCKS, kv_cache_memory_bytes=400_000)
    program = app.program()
    caches = program.make_caches(program.build(Phase.DECODE))
    num_blocks = app.neuron_config.pa_num_blocks
    assert {cache.shape[0] for cache in caches} == {num_blocks + 1}
    used = sum(cache.nbytes for cache in caches)
    assert used <= 400_000 < used + used // (num_blocks + 1)


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_what_the_head_lacks_is_its_targets(name: str, folders: Folders, tmp_path: Path) -> None:
    target, head = folders["eagle"]
    (weights,) = make_fused_head(target, head, **SHORT).rank_weights((0,))
    assert torch.equal(weights[f"draft_model.{name}"], weights[f"target_model.{name}"])
    own = Path(shutil.copytree(head, tmp_path / "own"))
    state = load_file(own / "model.safetensors")
    state[name] = weights[f"draft_model.{name}"] + 1
    save_file(state, own / "model.safetensors")
    (again,) = make_fused_head(target, own, **SHORT).rank_weights((0,))
    assert torch.equal(again[f"draft_model.{name}"], state[name])


def test_missing_weights_are_the_draft_models(folders: Folders, tmp_path: Path) -> None:
    target, head = folders["eagle3"]
    broken = Path(shutil.copytree(head, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["midlayer.hidden_norm.weight"]
    save_file(weights, broken / "model.safetensors")
    app = make_fused_head(target, broken, **EAGLE3)
    message = r"of the draft model, .*\n.*missing .*layers\.0\.hidden_norm\.weight"
    with pytest.raises(WeightError, match=message):
        app.compile(tmp_path / "artifact", progress=False)


@pytest.mark.parametrize("own", [{}, {"enable_eagle_draft_input_norm": True}])
def test_the_norm_before_attention_may_be_named_for_the_target(
    own: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    """NxDI has one set of options for both."""
    target, _ = folders["eagle"]
    options = {"enable_eagle_draft_input_norm": True}
    _, target, head = save_agreeing(tmp_path, **options)
    asked = options if not own else {"draft_options": own}
    (weights,) = make_fused_head(target, head, **SHORT, **asked).rank_weights((0,))
    assert "draft_model.layers.0.input_layernorm.weight" in weights


TREE = {"0": [1, 2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_eagle3": True, "draft_options": {"is_eagle3": False}}, "is_eagle3=False, the target"),
        ({"draft_options": {"is_eagle3": True}}, "the head has is_eagle3=True, the target"),
        (
            {"draft_options": {"is_eagle_draft": False}},
            "draft model is_eagle_draft=False; set both",
        ),
        ({"enable_eagle_speculation": False}, "enable_eagle_speculation=False, its draft model"),
        ({"token_tree_config": TREE}, "token_tree_config is for .* leave enable_fused_specul"),
        ({"draft_options": {"token_tree_config": TREE}}, "token_tree_config=.*leave it out"),
        ({"is_eagle_draft": True}, "is_eagle_draft=True for the head"),
        ({"is_eagle3": True, "enable_eagle_draft_input_norm": True}, "heads of EAGLE v1"),
        ({"tp_degree": 2, "sequence_parallel_enabled": True}, "leave it out for the head"),
        ({"tp_degree": 2, "draft_options": {"tp_degree": 4}}, r"tp_degree=4, the target 2"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], message: str, folders: Folders
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_fused_head(*folders["eagle"], **{**SHORT, **options})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 32}, "reads 192 features of a token, the target returns 96"),
        ({"vocab_size": 51}, "the draft model has vocab_size=97, the target 51"),
    ],
)
def test_a_head_of_another_target_is_refused(
    sizes: dict[str, int], message: str, folders: Folders, tmp_path: Path
) -> None:
    target = save_tiny(tiny_hf_model("llama", num_hidden_layers=5, **sizes), tmp_path / "target")
    with pytest.raises(ConfigError, match=message):
        make_fused_head(target, folders["eagle3"][1], **EAGLE3)


def test_classes_may_be_named(folders: Folders) -> None:
    config = make_fused_head(*folders["eagle3"], **EAGLE3).config
    fused = config.fused_spec_config
    assert isinstance(fused, FusedSpecNeuronConfig)
    fused.draft_model_cls = NeuronEagle3ForCausalLM
    assert NeuronLlamaForCausalLM(folders["eagle3"][0], config).build(Phase.DECODE) is not None
    fused.draft_model_cls = NeuronLlamaForCausalLM
    with pytest.raises(ConfigError, match="leave draft_model_cls out for an EAGLE head"):
        NeuronLlamaForCausalLM(folders["eagle3"][0], config)


def tokens_of(model: Any) -> list[int]:
    """Of a prompt of three tokens, a step that proposes, and one of a single token."""
    found = [int(model(torch.tensor([[5, 6, 7]])).tokens)]
    ids, places = torch.tensor([[found[0], 0, 0, 0]]), torch.tensor([[3, 4, 5, 6]])
    kept = [token for token in model.verify(ids, places).tokens[0].tolist() if token >= 0]
    place = torch.tensor([[3 + len(kept)]])
    return [*found, *kept, int(model(torch.tensor([kept[-1:]]), position_ids=place).tokens)]


def expected_tokens(folder: Path, num_tokens: int) -> list[int]:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=num_tokens, do_sample=False)
    return [int(token) for token in out[0, 3:]]


def test_auto_takes_the_folder_of_a_head(folders: Folders, tmp_path: Path) -> None:
    """And an artefact knows it: as weights read again, and with weights of its own."""
    target, head = folders["eagle3"]
    options = {**EAGLE3, "backend": "eager", "torch_dtype": torch.float32, "tp_degree": 2}
    options |= {"enable_fused_speculation": True, "enable_eagle_speculation": True}
    options |= {"speculation_length": 4, "on_device_sampling_config": {}}
    model = AutoModelForCausalLM.from_pretrained(target, draft_model_path=head, **options)
    found = tokens_of(model)
    assert found == expected_tokens(target, len(found))
    artifact = tmp_path / "artifact"
    model.compile(artifact, progress=False)
    assert tokens_of(AutoModelForCausalLM.from_pretrained(artifact)) == found
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["graphs"][-1]["outputs"] == ["tokens"]
    with pytest.raises(ConfigError, match="takes no options"):
        AutoModelForCausalLM.from_pretrained(artifact, draft_model_path=head)


def test_an_artefact_made_as_nxdi_makes_it(folders: Folders) -> None:
    """Whose draft config has the target's class; the head is whole on every rank."""
    own = {"draft_options": {"tp_degree": 1}, "tp_degree": 2, "save_sharded_checkpoint": True}
    model = load_fused_head(*folders["eagle"], **SHORT, **own)
    again = NeuronLlamaForCausalLM(folders["eagle"][0] / "fused")
    again.load(folders["eagle"][0] / "fused")
    found = tokens_of(again)
    assert found == tokens_of(model) == expected_tokens(folders["eagle"][0], len(found))
    assert copy.deepcopy(again.config) == again.config
