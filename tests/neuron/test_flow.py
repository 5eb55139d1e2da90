"""Compile, save, load, generate through the double: the tokens of the eager backend."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nxdi
from neuron.conftest import Artifacts, Folders, compile_elsewhere
from neuron.nxd_double import VERSIONS, Double
from neuron.support import PROMPTS, TINY, eager, generate, loaded, neuron_app
from nxdi.config import OnDeviceSamplingConfig
from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.runtime.store import open_artifact
from nxdi.types import Phase
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_eagle import KINDS, make_fused_head, save_agreeing
from tiny_models import FAMILIES, VOCAB_SIZE, make_fused
from tiny_models import loaded as compiled

TESTS, SOURCE = Path(__file__).parents[1], Path(nxdi.__file__).parents[1]
# One rank and four are the same code for every family: in the default run for one without, and one
# with a window.
BOTH = ("llama", "gemma3")


def cases() -> list[Any]:
    slow = pytest.mark.slow
    return [
        pytest.param(family, tp, marks=[] if tp == 2 or family in BOTH else slow)
        for family in FAMILIES
        for tp in (1, 2, 4)
    ]


@pytest.mark.parametrize(("family", "tp_degree"), cases())
def test_tokens_are_those_of_the_eager_backend(
    family: str, tp_degree: int, sdk: Double, folders: Folders, tmp_path: Path
) -> None:
    expected = generate(eager(folders(family), tp_degree=tp_degree))
    got = generate(loaded(folders(family), tmp_path / "artifact", tp_degree=tp_degree))
    assert got.tolist() == expected.tolist()
    assert len(set(expected[:, PROMPTS.shape[1] :].flatten().tolist())) > 4


@pytest.mark.parametrize(
    "options",
    [
        {"sequence_parallel_enabled": True},
        {"vocab_parallel": True},
        {"target": "trn1", "padding_side": "left"},
        {"target": "inf2", "torch_dtype": "float16"},
        {"windowed_context_encoding_size": 8},
        {"windowed_context_encoding_size": 8, "is_block_kv_layout": True, "pa_block_size": 4},
    ],
)
def test_options_that_change_the_graphs(
    options: dict[str, Any], sdk: Double, folders: Folders, tmp_path: Path
) -> None:
    options = {**options, "tp_degree": 2}
    expected = generate(eager(folders("qwen2"), **options))
    got = generate(loaded(folders("qwen2"), tmp_path / "artifact", **options))
    assert got.tolist() == expected.tolist()


def test_every_graph_of_a_plan(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "tp_degree": 2,
        "enable_bucketing": True,
        "context_encoding_buckets": [8, 16],
        "token_generation_buckets": [16, 32],
        "token_generation_batches": [1],
    }
    app, oracle = loaded(folders("llama"), tmp_path / "a", **options), eager(folders("llama"))
    for num_rows, length in [(2, 12), (1, 6), (1, 12)]:
        prompts = PROMPTS[:num_rows, :length]
        app.reset()
        assert generate(app, prompts).tolist() == generate(oracle, prompts).tolist()
    ran = {call["model_name"] for call in sdk.calls_of("NxDModel.forward")}
    assert ran == {graph.name for graph in app.plan.graphs}
    assert len(ran) == 6


def test_trees_of_a_model_s_own_heads(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    """Graphs that verify trees, and heads that propose them."""
    folder = shutil.copytree(folders("llama"), tmp_path / "model")
    draw = torch.Generator().manual_seed(1)
    sizes = {
        "0.0.linear.weight": (64, 64),
        "0.0.linear.bias": (64,),
        "0.1.weight": (VOCAB_SIZE, 64),
    }
    state = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    torch.save(state, folder / "medusa_heads.pt")
    tree: dict[str, Any] = {"is_medusa": True, "num_medusa_heads": 1, "medusa_tree": [[0], [1]]}
    tree |= {"medusa_speculation_length": 3, "tp_degree": 2}
    app, oracle = loaded(folder, tmp_path / "artifact", **tree), eager(folder, **tree)
    assert generate(app).tolist() == generate(eager(folders("llama"))).tolist()
    ran = {call["model_name"] for call in sdk.calls_of("NxDModel.forward")}
    assert ran >= {graph.name for graph in app.plan.graphs if graph.phase is not Phase.DECODE}
    ids, places = torch.tensor([[5, 6, 7], [8, 9, 3]]), torch.tensor([[6, 7, 8], [4, 5, 6]])
    for model in (app, oracle):
        model.reset()
        model(PROMPTS)
    found, expected = (
        model.verify(ids, places, parents=[(-1, 0, 0), (-1, 0, 1)]) for model in (app, oracle)
    )
    assert torch.equal(found.candidates, expected.candidates)
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.parametrize(
    ("tp_degree", "draft_degree", "sampling"),
    [
        pytest.param(1, 1, {}, marks=pytest.mark.slow),
        (2, 1, {}),
        pytest.param(2, 2, {}, marks=pytest.mark.slow),
        pytest.param(2, 2, {"dynamic": True}, marks=pytest.mark.slow),
    ],
)
def test_a_draft_model_in_the_graph(
    tp_degree: int,
    draft_degree: int,
    sampling: dict[str, Any],
    sdk: Double,
    folders: Folders,
    tmp_path: Path,
) -> None:
    """The target's twin is always right: three new tokens per step."""
    folder = folders("llama")
    own = {"on_device_sampling_config": sampling}
    device = {"backend": "neuron", "target": "trn2", "tp_degree": tp_degree, **TINY}
    draft = {"draft_options": {"tp_degree": draft_degree}, "speculation_length": 3}
    app = compiled(make_fused(folder, folder, **device, **draft, **own), tmp_path / "fused")
    asked = {"do_sample": True, "top_k": 20, "seeds": [3, 4]} if sampling else {"do_sample": False}
    found, plain = (
        HuggingFaceGenerationAdapter(model).generate(PROMPTS, **asked, max_new_tokens=7)
        for model in (app, eager(folder, **own))
    )
    assert found.tolist() == plain.tolist()
    ran = [call["model_name"] for call in sdk.calls_of("NxDModel.forward")]
    assert [name.partition("_b2")[0] for name in ran[-3:]] == [
        "context_encoding_model",
        *["fused_speculation_model"] * 2,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tp_degree", "draft_degree", "own"),
    [
        ("eagle3", 2, 1, {}),
        ("eagle", 1, 1, {}),
        ("eagle", 2, 2, {"is_block_kv_layout": True}),
    ],
)
def test_a_head_in_the_graph(
    kind: str,
    tp_degree: int,
    draft_degree: int,
    own: dict[str, Any],
    sdk: Double,
    tmp_path: Path,
) -> None:
    """What the target alone says, in fewer steps."""
    _, *pair = save_agreeing(tmp_path, **KINDS[kind])
    device = {"backend": "neuron", "target": "trn2", "tp_degree": tp_degree, **TINY, **own}
    head = {"draft_options": {"tp_degree": draft_degree}, "speculation_length": 3}
    app = compiled(make_fused_head(*pair, **device, **KINDS[kind], **head), tmp_path / "fused")
    assert generate(app).tolist() == generate(eager(pair[0])).tolist()
    ran = [call["model_name"] for call in sdk.calls_of("NxDModel.forward")]
    assert any(name.startswith("fused_speculation_model") for name in ran)


@pytest.mark.slow
def test_features_are_kept_in_the_dtype_of_the_device(sdk: Double, tmp_path: Path) -> None:
    _, *pair = save_agreeing(tmp_path, **KINDS["eagle3"])
    half = {"backend": "neuron", "target": "trn2", "torch_dtype": "bfloat16", **TINY}
    app = compiled(make_fused_head(*pair, **half, **KINDS["eagle3"]), tmp_path / "fused")
    assert {cache.dtype for cache in app.runner.executables[0].caches} == {torch.bfloat16}
    plain = loaded(pair[0], tmp_path / "plain", torch_dtype="bfloat16")
    assert generate(app).tolist() == generate(plain).tolist()


def test_sampling_in_the_graph(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    sampling = OnDeviceSamplingConfig(dynamic=True)
    options = {"on_device_sampling_config": sampling, "output_logits": True}
    params = torch.tensor([[20.0, 0.9, 1.0], [1.0, 1.0, 1.0]])
    results = [
        app(PROMPTS, sampling_params=params, seeds=[3, 4])
        for app in (
            loaded(folders("llama"), tmp_path / "artifact", **options),
            eager(folders("llama"), **options),
        )
    ]
    assert results[0].tokens.tolist() == results[1].tokens.tolist()
    assert results[0].tokens[1] == results[1].logits[1, 0].argmax()
    torch.testing.assert_close(results[0].logits, results[1].logits)


def test_sixteen_bits(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    """The device computes and caches in the dtype of the weights."""
    app = loaded(folders("llama"), tmp_path / "artifact", torch_dtype="bfloat16", tp_degree=2)
    assert {cache.dtype for cache in app.runner.executables[0].caches} == {torch.bfloat16}
    logits, expected = app(PROMPTS).logits, eager(folders("llama"))(PROMPTS).logits
    assert logits is not None
    assert expected is not None
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.1 * float(expected.abs().max()))


def step(app: Any, rows: list[int], ids: list[list[int]], start: int) -> Tensor:
    """Logits of one step of some rows, whose tokens begin at position `start`."""
    tokens = torch.tensor(ids)
    positions = torch.arange(start, start + tokens.shape[1]).expand(tokens.shape)
    found: Tensor = app(tokens, position_ids=positions, seq_ids=torch.tensor(rows)).logits
    return found


def test_sequences_go_on_in_any_order(sdk: Double, folders: Folders, artifacts: Artifacts) -> None:
    """A row keeps its past while another begins."""
    apps = [neuron_app(folders("llama"), tp_degree=2), eager(folders("llama"))]
    apps[0].load(artifacts(2))
    steps: list[tuple[list[int], list[list[int]], int]] = [
        ([1], [[5, 6, 7, 8]], 0),
        ([1], [[9]], 4),
        ([0], [[15, 16, 17, 18, 19]], 0),
        ([1, 0], [[10], [20]], 5),
        ([0, 1], [[21], [11]], 6),
    ]
    for rows, ids, start in steps:
        got, expected = (step(app, rows, ids, start) for app in apps)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_reset_empties_the_caches_of_every_rank(
    sdk: Double, folders: Folders, artifacts: Artifacts
) -> None:
    app = neuron_app(folders("llama"), tp_degree=2)
    app.load(artifacts(2))
    first = generate(app)
    device = app.runner.executables[0]._model  # type: ignore[attr-defined]  # of NeuronRanks
    assert len(device.states) == 2
    assert all(bool(state.any()) for rank in device.states for state in rank.values())
    app.reset()
    assert not any(bool(state.any()) for rank in device.states for state in rank.values())
    assert not any(bool(cache.any()) for cache in app.runner.executables[0].caches)
    assert generate(app).tolist() == first.tolist()


class OwnArguments(NeuronLlamaForCausalLM):
    def get_compiler_args(self) -> str:
        return "-O3 --model-type=transformer"


def test_a_models_own_compiler_arguments(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    app = neuron_app(folders("llama"))
    OwnArguments(app.model_path, app.config).compile(tmp_path / "artifact", progress=False)
    assert set(sdk.args.values()) == {"-O3 --model-type=transformer --lnc=2"}
    assert len(sdk.args) == 2


def test_another_process(folders: Folders, tmp_path: Path) -> None:
    artifact = compile_elsewhere(folders("qwen3"), tmp_path / "artifact", tp_degree=2)
    program = [sys.executable, str(Path(__file__).with_name("load_program.py"))]
    arguments = [str(folders("qwen3")), str(artifact), "2"]
    done = subprocess.run(
        program + arguments,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(TESTS)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == generate(eager(folders("qwen3"))).tolist()


def test_an_artefact_with_weights_needs_no_checkpoint(
    sdk: Double, folders: Folders, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in folders("llama").glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    options = {"tp_degree": 2, "save_sharded_checkpoint": True}
    expected = generate(loaded(folder, tmp_path / "artifact", **options))
    names = sorted(path.name for path in (tmp_path / "artifact" / "weights").iterdir())
    assert names == [f"tp{rank}_sharded_checkpoint.safetensors" for rank in range(2)]
    for file in folder.glob("*.safetensors"):
        file.unlink()
    app = neuron_app(folder, **options)
    app.load(tmp_path / "artifact")
    assert generate(app).tolist() == expected.tolist()


@pytest.mark.parametrize("is_named", [False, True])
def test_the_second_time_nothing_is_compiled(
    is_named: bool, sdk: Double, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The automatic artefact, or the folder that NEURON_COMPILED_ARTIFACTS names, is found."""
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path / "cache"))
    if is_named:
        monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "artifact"))

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folders("llama"), backend="neuron", target="trn2", torch_dtype="float32", **TINY
        )

    first = generate(load())
    assert len(sdk.calls_of("trace.functions.compile")) == 2
    assert generate(load()).tolist() == first.tolist()
    assert len(sdk.calls_of("trace.functions.compile")) == 2
    assert (tmp_path / "artifact" / "model.pt").is_file() is is_named


def test_what_an_artefact_says(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    app = neuron_app(folders("llama"), tp_degree=2)
    app.compile(tmp_path / "artifact", progress=False)
    manifest = open_artifact(tmp_path / "artifact")
    neuronx, distributed = VERSIONS["torch-neuronx"], VERSIONS["neuronx-distributed"]
    assert manifest.platform == (
        f"trn2 lnc2, torch-neuronx {neuronx}, neuronx-distributed {distributed}"
    )
    assert manifest.compiler_version == f"neuronx-cc {VERSIONS['neuronx-cc']}"
    assert manifest.backend == "neuron"
    assert {kernel["op"]: kernel["chosen"] for kernel in manifest.kernels} == {
        "attend": "explicit",
        **dict.fromkeys(("attention_output", "gated_mlp", "qkv", "rmsnorm", "rope"), "operators"),
    }
    index = json.loads((tmp_path / "artifact" / "graphs.json").read_text())
    assert index.keys() == {graph.name for graph in app.plan.graphs}
    for name, graph in index.items():
        assert graph["compiler_args"] == sdk.args[name]
        assert len(graph["hlo_sha256"]) == 64
        assert "model.layers.0.mlp.down_proj.weight" in graph["weights"]
        assert not any(weight.startswith("cache_") for weight in graph["weights"])


def test_progress_and_order(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    """Graph by graph, and all for the ranks and cores of the config."""
    app = neuron_app(folders("llama"), tp_degree=4, logical_nc_config=1)
    seen: list[tuple[int, int, str]] = []
    app.backend.compile(app.program(), tmp_path, lambda *report: seen.append(report))
    prefill, decode = (graph.name for graph in app.plan.graphs)
    assert seen == [(0, 2, prefill), (1, 2, decode), (2, 2, "model.pt")]
    (state,) = sdk.calls_of("NxDParallelState.__init__")
    assert state == {"world_size": 4, "tensor_model_parallel_size": 4, "lnc_size": 1}
    names = [name.split(".")[-1] for name, _ in sdk.calls]
    each = ["trace", "compile", "add"]
    assert names[-8:] == [*each, *each, "save", "__exit__"]


def test_the_environment(
    sdk: Double, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling leaves none behind; loading sets what the runtime reads, but never overrides it."""
    monkeypatch.setenv("BASE_COMPILE_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setenv("NEURON_SCRATCHPAD_PAGE_SIZE", "256")
    before = dict(os.environ)
    app = neuron_app(folders("llama"), scratchpad_page_size=512)
    app.compile(tmp_path / "artifact", progress=False)
    assert dict(os.environ) == before
    logs = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("log-neuron-cc.txt"))
    assert [path.parts[:2] for path in logs] == [("work", g.name) for g in app.plan.graphs]
    app.load(tmp_path / "artifact")
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert added == {"NEURON_LOGICAL_NC_CONFIG": "2"}


def test_temporary_files_go(
    sdk: Double, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    neuron_app(folders("llama")).compile(tmp_path / "artifact", progress=False)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_warm_up_runs_a_graph_of_each_phase(
    sdk: Double, folders: Folders, artifacts: Artifacts
) -> None:
    app = neuron_app(folders("llama"))
    app.load(artifacts(1), skip_warmup=True)
    assert sdk.calls_of("NxDModel.forward") == []
    app.load(artifacts(1))
    ran = [call["model_name"] for call in sdk.calls_of("NxDModel.forward")]
    assert ran == [graph.name for graph in app.plan.graphs]
