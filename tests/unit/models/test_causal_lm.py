"""One step of a loaded model: what it takes, what it returns, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.config import OnDeviceSamplingConfig
from nxdi.errors import BucketError, ConfigError, ShapeError
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM
from nxdi.types import Phase
from tiny_models import load_app, make_app

LENGTHS: dict[str, Any] = {"seq_len": 24, "max_context_length": 12, "batch_size": 4}
IDS = torch.tensor([[5, 17, 3, 88], [9, 2, 41, 7]])


@pytest.fixture(scope="module")
def app(saved: Path) -> NeuronBaseForCausalLM:
    return load_app(saved, **LENGTHS)


def logits(app: NeuronBaseForCausalLM, *args: Any, **inputs: Any) -> Tensor:
    found = app(*args, **inputs).logits
    assert found is not None
    return found


def test_one_step_returns_the_last_tokens_logits(app: NeuronBaseForCausalLM) -> None:
    out = app(IDS)
    assert out.logits is not None
    assert tuple(out.logits.shape) == (2, 1, 97)
    assert out.logits.dtype == torch.float32
    assert out.tokens is None
    assert out.hidden_states is None


def test_an_output_unpacks_to_what_it_has() -> None:
    tokens = torch.tensor([4])
    assert list(CausalLMOutput(tokens=tokens)) == [tokens]
    assert CausalLMOutput(tokens=tokens).hidden_states is tokens
    assert len(list(CausalLMOutput(torch.zeros(1, 1, 97), tokens))) == 2


def test_tokens_and_logits_together(saved: Path) -> None:
    sampling = OnDeviceSamplingConfig()
    app = load_app(saved, on_device_sampling_config=sampling, output_logits=True, **LENGTHS)
    out = app(IDS)
    assert out.logits is not None
    assert out.tokens is not None
    assert out.tokens.tolist() == out.logits[:, -1].argmax(dim=-1).tolist()


def test_decode_continues_where_prefill_ended(app: NeuronBaseForCausalLM) -> None:
    whole = logits(app, IDS)
    app.reset()
    logits(app, IDS[:, :2])
    for position in (2, 3):
        stepped = logits(
            app, IDS[:, position : position + 1], position_ids=torch.full((2, 1), position)
        )
    torch.testing.assert_close(stepped, whole)


def test_positions_may_come_from_a_mask_over_all_tokens(app: NeuronBaseForCausalLM) -> None:
    """As NxDI's scripts pass it: the mask grows, the input is the last token."""
    logits(app, IDS[:, :3])
    by_position = logits(app, IDS[:, 3:], position_ids=torch.full((2, 1), 3))
    logits(app, IDS[:, :3])
    by_mask = logits(app, IDS[:, 3:], attention_mask=torch.ones(2, 4))
    assert torch.equal(by_mask, by_position)


def test_a_mask_of_the_new_token_only(app: NeuronBaseForCausalLM) -> None:
    logits(app, IDS[:, :3])
    plain = logits(app, IDS[:, 3:], position_ids=torch.full((2, 1), 3))
    both = logits(app, IDS[:, 3:], torch.ones(2, 1), torch.full((2, 1), 3))
    assert torch.equal(both, plain)


def test_padding_may_hold_any_token(app: NeuronBaseForCausalLM) -> None:
    plain = logits(app, IDS)
    padded = torch.cat([torch.full((2, 3), -100), IDS, torch.full((2, 2), 12345)], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0]]).expand(2, -1)
    assert torch.equal(logits(app, padded, attention_mask=mask), plain)


def test_rows_keep_the_callers_order(app: NeuronBaseForCausalLM) -> None:
    plain = logits(app, IDS)
    rows = torch.tensor([3, 1])
    assert torch.equal(logits(app, IDS, seq_ids=rows), plain)
    step = {"position_ids": torch.full((2, 1), 4)}
    stepped = logits(app, IDS[:, :1], seq_ids=rows, **step)
    swapped = logits(app, IDS.flip(0)[:, :1], seq_ids=rows.flip(0), **step)
    assert torch.equal(swapped.flip(0), stepped)


def test_reset_forgets(app: NeuronBaseForCausalLM) -> None:
    logits(app, IDS)
    assert any(bool(cache.any()) for rank in app.runner.executables for cache in rank.caches)
    app.reset()
    assert not any(bool(cache.any()) for rank in app.runner.executables for cache in rank.caches)


def test_prompts_beyond_the_prefill_batch_run_in_parts(
    saved: Path, app: NeuronBaseForCausalLM
) -> None:
    ids = torch.cat([IDS, IDS + 1])[:3]
    parts = load_app(saved, **{**LENGTHS, "ctx_batch_size": 2})
    assert parts.plan.max_batch(Phase.PREFILL) == 2
    torch.testing.assert_close(logits(parts, ids), logits(app, ids))


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one dimension": ({"input_ids": IDS[0]}, ShapeError, r"input_ids has shape \(4,\)"),
    "no tokens": ({"input_ids": IDS[:, :0]}, ShapeError, "at least one token"),
    "outside the vocabulary": ({"input_ids": IDS + 80}, ShapeError, r"token 97 .*vocab_size=97"),
    "negative token": ({"input_ids": IDS - 3}, ShapeError, "token -1 at row 1, column 1"),
    "short mask": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 3)},
        ShapeError,
        "attention_mask covers 3 tokens, input_ids has 4",
    ),
    "mask of other rows": (
        {"input_ids": IDS, "attention_mask": torch.ones(3, 4)},
        ShapeError,
        r"attention_mask has shape \(3, 4\)",
    ),
    "all padding": (
        {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])},
        ShapeError,
        "row 1 has no token",
    ),
    "positions of other rows": (
        {"input_ids": IDS, "position_ids": torch.arange(4)},
        ShapeError,
        r"position_ids has shape \(4,\)",
    ),
    "positions with a gap": (
        {"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 3, 4]] * 2)},
        ShapeError,
        "count up by one",
    ),
    "two phases": (
        {"input_ids": IDS[:, :1], "position_ids": torch.tensor([[0], [4]])},
        ShapeError,
        r"rows \[0\] start at position 0 and the others continue",
    ),
    "several tokens that continue": (
        {"input_ids": IDS, "position_ids": torch.arange(4, 8).expand(2, 4)},
        ShapeError,
        "takes 1 token per row, not 4",
    ),
    "too many rows": ({"input_ids": IDS[:1].repeat(5, 1)}, BucketError, "5 rows do not fit"),
    "prompt too long": (
        {"input_ids": IDS.repeat(1, 4)},
        BucketError,
        "prompt of 16 tokens is longer than max_context_length=12",
    ),
    "past the cache": (
        {"input_ids": IDS[:, :1], "position_ids": torch.full((2, 1), 24)},
        BucketError,
        r"25 is longer than the largest bucket \(24\); raise seq_len",
    ),
    "repeated rows": (
        {"input_ids": IDS, "seq_ids": torch.tensor([1, 1])},
        ShapeError,
        r"seq_ids=\[1, 1\] must be 2 distinct numbers from 0 to 3",
    ),
    "rows that do not exist": (
        {"input_ids": IDS, "seq_ids": torch.tensor([0, 4])},
        ShapeError,
        r"seq_ids=\[0, 4\]",
    ),
    "sampling of logits": (
        {"input_ids": IDS, "sampling_params": torch.tensor([[5.0, 1.0, 1.0]] * 2)},
        ConfigError,
        "compiled without sampling",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_computed(
    case: str, app: NeuronBaseForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, error, message = REFUSED[case]
    for rank in app.runner.executables:
        monkeypatch.setattr(type(rank), "__call__", lambda *args: pytest.fail("a graph was run"))
    with pytest.raises(error, match=message):
        app(**inputs)


def test_truncation_that_was_asked_for(saved: Path) -> None:
    app = load_app(saved, allow_input_truncation=True, **LENGTHS)
    long = torch.arange(1, 21)[None]
    assert torch.equal(logits(app, long), logits(app, long[:, :12]))


def test_a_step_before_load(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"not loaded; call model\.compile\(path\) once"):
        make_app(saved, **LENGTHS)(IDS)


def test_verify_has_a_result_after_each_token(saved: Path) -> None:
    """That of decoding them one by one, sampled with the same numbers; rows in any order."""
    sampling = OnDeviceSamplingConfig(dynamic=True)
    options = {"on_device_sampling_config": sampling, "output_logits": True, **LENGTHS}
    app = load_app(saved, speculation_length=3, **options)
    rows = torch.tensor([2, 0], dtype=torch.int32)
    chosen: dict[str, Any] = {"sampling_params": torch.tensor([[0, 1, 0.8]] * 2), "seeds": [7, 8]}
    app(IDS, seq_ids=rows, **chosen)
    new = torch.tensor([[30, 31, 32], [40, 41, 0]])
    places = torch.tensor([[4, 5, 6], [4, 5, -1]])
    out = app.verify(new, places, seq_ids=rows, **chosen)
    assert out.logits is not None
    assert out.tokens is not None
    assert (out.logits.shape, out.tokens.shape) == ((2, 3, 97), (2, 3))
    for place in range(2):
        position = torch.full((2, 1), 4 + place)
        one = app(new[:, place : place + 1], position_ids=position, seq_ids=rows, **chosen)
        assert one.tokens is not None
        assert out.tokens[:, place].tolist() == one.tokens.tolist()
        torch.testing.assert_close(out.logits[:, place : place + 1], one.logits)


def test_what_verify_refuses(app: NeuronBaseForCausalLM, saved: Path) -> None:
    with pytest.raises(ConfigError, match="compiled with speculation_length=0"):
        app.verify(IDS[:, :2], torch.tensor([[4, 5], [4, 5]]))
    verifies = load_app(saved, speculation_length=2, **LENGTHS)
    with pytest.raises(BucketError, match="raise speculation_length"):
        verifies.verify(IDS[:, :3], torch.tensor([[4, 5, 6]] * 2))
    with pytest.raises(ShapeError, match="count up by one"):
        verifies.verify(IDS[:, :2], torch.tensor([[4, 6]] * 2))
    with pytest.raises(BucketError, match="raise seq_len"):
        verifies.verify(IDS[:, :2], torch.tensor([[23, 24]] * 2))


def test_verify_graphs_take_no_memory_of_their_own(saved: Path) -> None:
    """Weights and caches are those of the other graphs."""
    app = load_app(saved, speculation_length=4, **LENGTHS)
    rank: Any = app.runner.executables[0]
    kept = {
        phase: {name: tensor.data_ptr() for name, tensor in module.named_parameters()}
        for phase, module in rank.modules.items()
    }
    assert kept[Phase.VERIFY] == kept[Phase.DECODE]
    plain = make_app(saved, **LENGTHS).build(Phase.DECODE)
    assert [tuple(cache.shape) for cache in rank.caches] == plain.cache_shapes()
