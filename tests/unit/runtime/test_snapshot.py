from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.utils.snapshot import (
    SnapshotOutputFormat,
    register_snapshot_hooks,
    unregister_snapshot_hooks,
)
from tiny_models import load_app, save_tiny, tiny_hf_model

PREFILL, DECODE = "context_encoding_model_b2_s16", "token_generation_model_b2_s32"
INPUTS = {"input_ids", "position_ids", "seq_ids"}
CACHES = {f"cache{i}" for i in range(4)}
SIZES = {"seq_len": 32, "max_context_length": 16, "batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("snapshot"))


@pytest.fixture(scope="module", params=[1, 2], ids=["tp1", "tp2"])
def loaded(folder: Path, request: pytest.FixtureRequest) -> NeuronBaseForCausalLM:
    return load_app(folder, tp_degree=request.param, **SIZES)


@pytest.fixture
def app(loaded: NeuronBaseForCausalLM) -> Iterator[NeuronBaseForCausalLM]:
    loaded.reset()
    yield loaded
    loaded.unregister_snapshot_hooks()
    assert loaded.runner.observers == []


def run(app: NeuronBaseForCausalLM, num_tokens: int = 4) -> None:
    """Prompts of 3 and 2 tokens, and the tokens after them."""
    app(torch.tensor([[5, 6, 7], [8, 9, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    for step in range(num_tokens - 1):
        positions = torch.tensor([[3 + step], [2 + step]])
        app(torch.tensor([[20 + step], [30 + step]]), position_ids=positions)


def written(folder: Path) -> set[str]:
    return {str(path.parent.relative_to(folder)) for path in folder.rglob("*.npy")}


def test_chosen_requests_of_each_graph(app: NeuronBaseForCausalLM, tmp_path: Path) -> None:
    register_snapshot_hooks(app, tmp_path, capture_at_requests=[0, 2])
    run(app)
    assert written(tmp_path) == {
        f"{PREFILL}/request0/rank0",
        f"{DECODE}/request0/rank0",
        f"{DECODE}/request2/rank0",
    }
    files = {path.stem for path in (tmp_path / DECODE / "request2" / "rank0").iterdir()}
    assert files == INPUTS | CACHES
    ids = np.load(tmp_path / DECODE / "request2" / "rank0" / "input_ids.npy")
    assert ids.tolist() == [[22], [32]]


def test_chosen_tokens_of_each_row(app: NeuronBaseForCausalLM, tmp_path: Path) -> None:
    app.register_snapshot_hooks(tmp_path, capture_for_tokens=[[0, 3], [1]])
    run(app)
    assert written(tmp_path) == {
        f"{PREFILL}/row0_token0/rank0",
        f"{DECODE}/row0_token3/rank0",
        f"{DECODE}/row1_token1/rank0",
    }
    position = np.load(tmp_path / DECODE / "row1_token1" / "rank0" / "position_ids.npy")
    assert position.tolist() == [[3], [2]]
    # The caches are those that the step starts from: the second row holds its prompt of 2.
    cache = np.load(tmp_path / DECODE / "row1_token1" / "rank0" / "cache0.npy")
    assert [bool(cache[1, :, slot].any()) for slot in range(3)] == [True, True, False]


def test_ranks(app: NeuronBaseForCausalLM, tmp_path: Path) -> None:
    ranks = list(app.runner.world.local_ranks)
    register_snapshot_hooks(app, tmp_path, capture_at_requests=[0], ranks=ranks)
    run(app, 1)
    assert written(tmp_path) == {f"{PREFILL}/request0/rank{rank}" for rank in ranks}
    with pytest.raises(ConfigError, match=r"ranks=\[7\]"):
        register_snapshot_hooks(app, tmp_path, capture_at_requests=[0], ranks=[7])


def test_nothing_is_written_any_more(app: NeuronBaseForCausalLM, tmp_path: Path) -> None:
    register_snapshot_hooks(app, tmp_path, capture_at_requests=[0])
    unregister_snapshot_hooks(app)
    run(app)
    assert written(tmp_path) == set()


def test_bfloat16_is_widened(folder: Path, tmp_path: Path) -> None:
    app = load_app(folder, torch_dtype="bfloat16", **SIZES)
    register_snapshot_hooks(app, tmp_path, capture_at_requests=[0])
    run(app, 1)
    cache = np.load(tmp_path / PREFILL / "request0" / "rank0" / "cache0.npy", allow_pickle=False)
    assert cache.dtype == np.float32


def test_blocks_and_prompts_in_pieces(folder: Path, tmp_path: Path) -> None:
    paged = {"is_block_kv_layout": True, "pa_block_size": 4, "windowed_context_encoding_size": 2}
    app = load_app(folder, **SIZES, **paged)
    register_snapshot_hooks(app, tmp_path, capture_at_requests=[0], capture_for_tokens=[[0, 1]])
    run(app)
    prefill, extend = "context_encoding_model_b2_s2", "context_encoding_model_b2_s2_c32"
    assert {
        path.parent.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.npy")
    } == {
        *(f"{graph}/request0" for graph in (prefill, extend, DECODE)),
        *(f"{graph}/row0_token0" for graph in (prefill, extend)),
        f"{DECODE}/row0_token1",
    }
    ends = np.load(tmp_path / extend / "row0_token0" / "rank0" / "position_ids.npy")
    assert ends[0].tolist() == [2, -1]


def test_pickles_are_refused(app: NeuronBaseForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"NUMPY_PICKLE is refused.*use NUMPY_IMAGES"):
        register_snapshot_hooks(app, tmp_path, SnapshotOutputFormat.NUMPY_PICKLE, [0])
    with pytest.raises(ConfigError, match="nothing to capture"):
        register_snapshot_hooks(app, tmp_path)


NAME = "NXD_INFERENCE_CAPTURE_"


def test_the_environment_asks_for_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{NAME}SNAPSHOT", "1")
    monkeypatch.setenv(f"{NAME}OUTPUT_PATH", str(tmp_path))
    monkeypatch.setenv(f"{NAME}OUTPUT_FORMAT", "NUMPY_IMAGES")
    monkeypatch.setenv(f"{NAME}AT_REQUESTS", "0, 1")
    monkeypatch.setenv(f"{NAME}FOR_TOKENS", ";2,3")
    run(load_app(folder, **SIZES))
    assert written(tmp_path) == {
        f"{PREFILL}/request0/rank0",  # loading warms up, which is no request
        f"{DECODE}/request0/rank0",
        f"{DECODE}/request1/rank0",
        f"{DECODE}/row1_token2/rank0",
        f"{DECODE}/row1_token3/rank0",
    }


@pytest.mark.parametrize("value", [None, "", "0"])
def test_the_environment_asks_for_nothing(
    value: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"{NAME}SNAPSHOT", raising=False)
    if value is not None:
        monkeypatch.setenv(f"{NAME}SNAPSHOT", value)
    monkeypatch.setenv(f"{NAME}AT_REQUESTS", "0")
    assert load_app(folder, **SIZES).runner.observers == []


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"AT_REQUESTS": "0"}, ConfigError, "without NXD_INFERENCE_CAPTURE_OUTPUT_PATH"),
        ({"OUTPUT_PATH": "x"}, ConfigError, "nothing to capture"),
        ({"OUTPUT_PATH": "x", "AT_REQUESTS": "a"}, ConfigError, "AT_REQUESTS='a' is not a list"),
        ({"OUTPUT_PATH": "x", "FOR_TOKENS": "1;b"}, ConfigError, "FOR_TOKENS='1;b' is not a list"),
        ({"OUTPUT_PATH": "x", "OUTPUT_FORMAT": "PNG"}, ConfigError, "'PNG' is not known"),
        (
            {"OUTPUT_PATH": "x", "OUTPUT_FORMAT": "NUMPY_PICKLE", "AT_REQUESTS": "0"},
            UnsupportedError,
            "NUMPY_PICKLE is refused",
        ),
    ],
)
def test_a_senseless_environment(
    values: dict[str, str],
    error: type[Exception],
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"{NAME}SNAPSHOT", "1")
    for name, value in values.items():
        monkeypatch.setenv(f"{NAME}{name}", value)
    with pytest.raises(error, match=words):
        load_app(folder, **SIZES)
