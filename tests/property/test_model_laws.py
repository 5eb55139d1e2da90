"""Laws 2, 3, 5, 6 and 7 on tiny models: the answer does not depend on how it was computed.

Caches are never reset between examples: what earlier sequences left behind must not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.graph import padding
from nxdi.kernels.masks import MaskPolicy
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.model_base import NeuronBaseModel
from nxdi.modules.attention import attention_base
from nxdi.modules.kvcache import ContiguousCache, WindowCache, contiguous
from nxdi.parallel_layers import mappings
from tiny_models import VOCAB_SIZE, load_app, save_tiny, tiny_hf_model
from tolerances import LOGITS_FP32

ROWS, LONGEST, SEQ_LEN, WINDOW = 3, 24, 32, 5
App = NeuronBaseForCausalLM
Apps = Callable[[str], App]

NARROW = {
    "enable_bucketing": True,
    "context_encoding_buckets": [4, 8, 16, LONGEST],
    "token_generation_buckets": [8, 12, 20, SEQ_LEN],
    "token_generation_batches": [1, 2],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "wide": {},
    "narrow": NARROW,
    "one prompt at a time": {"ctx_batch_size": 1},
    "tp 2": {"tp_degree": 2},
    "tp 4": {"tp_degree": 4},
    "tp 2, vocabulary": {"tp_degree": 2, "vocab_parallel": True},
    "tp 4, sequence": {"tp_degree": 4, "sequence_parallel_enabled": True, **NARROW},
    "window": {},
    "window, whole cache": {},
}


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Apps:
    """Loaded models by name, all with the same weights but for the two with a window."""
    loaded: dict[str, App] = {}

    def get(name: str) -> App:
        if name not in loaded:
            has_window = name.startswith("window")
            options = {"sliding_window": WINDOW} if has_window else {}
            model = tiny_hf_model("mistral" if has_window else "llama", **options)
            folder = save_tiny(model, tmp_path_factory.mktemp("model"))
            with pytest.MonkeyPatch.context() as patch:
                if name == "window, whole cache":
                    patch.setattr(attention_base, "choose_layout", _whole_cache)
                loaded[name] = load_app(
                    folder,
                    **{
                        "seq_len": SEQ_LEN,
                        "max_context_length": LONGEST,
                        "batch_size": ROWS,
                        **OPTIONS[name],
                    },
                )
        return loaded[name]

    return get


def _whole_cache(
    neuron: NeuronConfig, mask: MaskPolicy, num_kv_heads: int, head_dims: tuple[int, int]
) -> ContiguousCache:
    return ContiguousCache(num_kv_heads, SEQ_LEN, head_dims)


Sequences = list[list[int]]


@st.composite
def texts(draw: st.DrawFn) -> tuple[Sequences, int]:
    """One sequence per row, and how many of its last tokens are decoded one by one."""
    num_new = draw(st.integers(0, 6))
    lengths = draw(st.lists(st.integers(1, LONGEST - num_new), min_size=1, max_size=ROWS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    draws = [torch.randint(VOCAB_SIZE, (n + num_new,), generator=generator) for n in lengths]
    return [tokens.tolist() for tokens in draws], num_new


def prefill(app: App, prompts: Sequences, seq_ids: Sequence[int] | None = None) -> Tensor:
    """Logits [R, V] after the last token of each prompt."""
    width = max(map(len, prompts))
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in prompts])
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in prompts])
    rows = torch.tensor(seq_ids or range(len(prompts)))
    return _logits(app(ids, attention_mask=mask, seq_ids=rows))


def step_logits(
    app: App, sequences: Sequences, num_new: int, seq_ids: Sequence[int] | None = None
) -> Tensor:
    """Logits [1 + num_new, R, V]: after the prompt, and after each token decoded."""
    starts = [len(tokens) - num_new for tokens in sequences]
    steps = [prefill(app, [t[:n] for t, n in zip(sequences, starts, strict=True)], seq_ids)]
    rows = torch.tensor(seq_ids or range(len(sequences)))
    for step in range(num_new):
        where = torch.tensor(starts).unsqueeze(1) + step
        ids = torch.tensor([[t[n + step]] for t, n in zip(sequences, starts, strict=True)])
        steps.append(_logits(app(ids, position_ids=where, seq_ids=rows)))
    return torch.stack(steps)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits[:, -1]
    return logits


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=LOGITS_FP32, atol=LOGITS_FP32)


def law_2_padding(apps: Apps, sequences: Sequences, num_new: int) -> None:
    close(
        step_logits(apps("narrow"), sequences, num_new),
        step_logits(apps("wide"), sequences, num_new),
    )


def law_3_steps(apps: Apps, sequences: Sequences, num_new: int) -> None:
    app = apps("narrow")
    for step, got in enumerate(step_logits(app, sequences, num_new)):
        so_far = [tokens[: len(tokens) - num_new + step] for tokens in sequences]
        close(got, prefill(app, so_far))


def law_5_window(apps: Apps, sequences: Sequences, num_new: int) -> None:
    close(
        step_logits(apps("window"), sequences, num_new),
        step_logits(apps("window, whole cache"), sequences, num_new),
    )


def law_6_ranks(apps: Apps, sequences: Sequences, num_new: int, name: str = "tp 2") -> None:
    close(
        step_logits(apps(name), sequences, num_new), step_logits(apps("wide"), sequences, num_new)
    )


def law_7_order(apps: Apps, sequences: Sequences, num_new: int, order: Sequence[int]) -> None:
    """Rows in another order, in other cache rows."""
    app = apps("narrow")
    rows = [row for row in order if row < len(sequences)]
    moved = [ROWS - 1 - row for row in rows]
    got = step_logits(app, [sequences[row] for row in rows], num_new, moved)
    close(got, step_logits(app, sequences, num_new)[:, rows])


def law_7_isolation(apps: Apps, sequences: Sequences, num_new: int) -> None:
    """A row's bits are the same whatever its neighbours hold, or if there are none."""
    app = apps("wide")
    together = step_logits(app, sequences, num_new)
    others = [[(token + 7) % VOCAB_SIZE for token in tokens] for tokens in sequences[1:]]
    assert torch.equal(step_logits(app, [sequences[0], *others], num_new)[:, 0], together[:, 0])
    assert torch.equal(step_logits(app, sequences[:1], num_new)[:, 0], together[:, 0])


few = settings(max_examples=50)


@few
@given(texts())
def test_padding_does_not_matter(apps: Apps, text: tuple[Sequences, int]) -> None:
    law_2_padding(apps, *text)


@few
@given(texts())
def test_prompts_one_at_a_time_do_not_matter(apps: Apps, text: tuple[Sequences, int]) -> None:
    close(step_logits(apps("one prompt at a time"), *text), step_logits(apps("wide"), *text))


@few
@given(texts())
def test_prefill_and_decode_are_one_prefill(apps: Apps, text: tuple[Sequences, int]) -> None:
    law_3_steps(apps, *text)


@few
@given(texts())
def test_a_rolling_cache_is_the_whole_cache(apps: Apps, text: tuple[Sequences, int]) -> None:
    law_5_window(apps, *text)


@settings(max_examples=20)
@given(texts())
@pytest.mark.parametrize("name", ["tp 2", "tp 4", "tp 2, vocabulary", "tp 4, sequence"])
def test_ranks_do_not_matter(apps: Apps, name: str, text: tuple[Sequences, int]) -> None:
    law_6_ranks(apps, *text, name=name)


@few
@given(texts(), st.permutations(range(ROWS)))
def test_order_of_rows_does_not_matter(
    apps: Apps, text: tuple[Sequences, int], order: list[int]
) -> None:
    law_7_order(apps, *text, order=order)


@few
@given(texts())
def test_neighbours_do_not_matter(apps: Apps, text: tuple[Sequences, int]) -> None:
    law_7_isolation(apps, *text)


def test_the_models_say_different_things_at_different_places(apps: Apps) -> None:
    """A model whose output hardly varies would obey any law."""
    for name in ("wide", "window"):
        # The same tokens in another order, the last one aside.
        logits = step_logits(apps(name), [[3, 1, 4, 1, 5], [1, 3, 5, 4, 5], [4, 1, 1, 3, 5]], 3)
        assert logits.argmax(dim=-1).unique().numel() >= 4
        last = logits[-1]
        assert float((torch.cdist(last, last) + 10 * torch.eye(ROWS)).min()) > 1


# Faults that each law must notice.


def last_column(self: NeuronBaseModel, x: Tensor, inputs: Any) -> Tensor:
    return x[:, -1:]


def padding_in_slot_0(cache: Tensor, new: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    return _write_slots(cache, new, rows, torch.where(slots == SEQ_LEN, 0, slots))


def shifted(self: WindowCache, newest: Tensor, length: int) -> Tensor:
    return _positions(self, newest + 1, length)


def in_given_order(batch: Any) -> Tensor:
    return torch.arange(batch.num_rows)


def mixed_rows(self: NeuronBaseModel, x: Tensor, inputs: Any) -> Tensor:
    hidden = _last_hidden(self, x, inputs)
    return hidden + 0.01 * hidden.sum(dim=0, keepdim=True)


_write_slots, _positions = contiguous.write_slots, WindowCache._positions
_last_hidden = NeuronBaseModel.last_hidden
TEXT: Sequences = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8], [1, 6, 1, 8, 0, 3, 3, 9, 8]]


@pytest.mark.parametrize(
    ("owner", "name", "fault", "law"),
    [
        (NeuronBaseModel, "last_hidden", last_column, law_2_padding),
        (contiguous, "write_slots", padding_in_slot_0, law_3_steps),
        (WindowCache, "_positions", shifted, law_5_window),
        (
            mappings,
            "reduce_from_tensor_model_parallel_region",
            lambda x, group: x,
            law_6_ranks,
        ),
        (padding, "graph_rows", in_given_order, law_7_order),
        (NeuronBaseModel, "last_hidden", mixed_rows, law_7_isolation),
    ],
)
def test_each_law_can_fail(
    apps: Apps,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    fault: Callable[..., Any],
    law: Callable[..., None],
) -> None:
    options: dict[str, Any] = {"order": [2, 0, 1]} if law is law_7_order else {}
    law(apps, TEXT, 3, **options)
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(AssertionError):
        law(apps, TEXT, 3, **options)
