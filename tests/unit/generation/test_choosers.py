"""Who chooses the next token: the graph where it can honour the request, else the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from nxdi.config import OnDeviceSamplingConfig
from nxdi.errors import ConfigError, ShapeError, UnsupportedError
from nxdi.generation.choosers import HostChooser
from nxdi.graph.sampling_inputs import prepare_sampling_params
from nxdi.models.causal_lm import CausalLMOutput
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter

Adapter = HuggingFaceGenerationAdapter
SEEDS = [11, 22, 33]


@pytest.fixture(scope="module")
def greedy(tiny: Any) -> Adapter:
    """Compiled to return the most likely token, and nothing else."""
    return tiny.adapter(on_device_sampling_config=OnDeviceSamplingConfig())


@pytest.fixture(scope="module")
def dynamic(tiny: Any) -> Adapter:
    """Compiled to sample with parameters given per row."""
    return tiny.adapter(on_device_sampling_config=OnDeviceSamplingConfig(dynamic=True))


@pytest.fixture(scope="module")
def with_logits(tiny: Any) -> Adapter:
    """Compiled to return greedy tokens and logits."""
    config = OnDeviceSamplingConfig()
    return tiny.adapter(on_device_sampling_config=config, output_logits=True)


def run(tiny: Any, adapter: Adapter, rows: Any = slice(None), **options: Any) -> list[list[int]]:
    """The new tokens of some of the prompts."""
    options = {"max_new_tokens": 15, **options}
    out = adapter.generate(tiny.ids[rows], attention_mask=tiny.mask[rows], **options)
    return out[:, tiny.ids.shape[1] :].tolist()


def test_greedy_graphs_return_tokens_only(tiny: Any, greedy: Adapter) -> None:
    assert run(tiny, greedy, do_sample=False) == tiny.greedy(15).tolist()
    out = greedy.neuron_model(tiny.ids, attention_mask=tiny.mask)
    assert out.logits is None
    assert out.tokens.tolist() == tiny.greedy(1)[:, 0].tolist()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"do_sample": True}, r"do_sample=True \(the graph was compiled greedy\)"),
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"return_dict_in_generate": True, "output_logits": True}, "output_logits"),
    ],
)
def test_what_greedy_graphs_cannot_do(
    options: dict[str, Any], named: str, tiny: Any, greedy: Adapter, with_logits: Adapter
) -> None:
    with pytest.raises(UnsupportedError, match=rf"{named}.*output_logits=True"):
        run(tiny, greedy, **options)
    torch.manual_seed(0)
    out = with_logits.generate(tiny.ids, attention_mask=tiny.mask, max_new_tokens=8, **options)
    torch.manual_seed(0)
    expected = tiny.hf.generate(tiny.ids, attention_mask=tiny.mask, max_new_tokens=8, **options)
    tokens, wanted = (getattr(x, "sequences", x).tolist() for x in (out, expected))
    assert tokens == wanted


def test_output_scores_without_a_dictionary_ask_for_nothing(tiny: Any, greedy: Adapter) -> None:
    assert run(tiny, greedy, output_scores=True) == tiny.greedy(15).tolist()


def test_processors_leave_the_raw_logits_alone() -> None:
    def double(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.mul_(2)

    logits = torch.tensor([[1.0, 3.0, 2.0]])
    chooser = HostChooser(LogitsProcessorList([double]), do_sample=False)
    chosen = chooser.choose(torch.tensor([[1]]), CausalLMOutput(logits.unsqueeze(1)))
    assert chosen.tokens.tolist() == [1]
    assert chosen.logits is not None
    assert chosen.scores is not None
    assert chosen.logits.tolist() == logits.tolist()
    assert chosen.scores.tolist() == [[2.0, 6.0, 4.0]]


def test_dynamic_graphs_are_greedy_unless_asked(tiny: Any, dynamic: Adapter) -> None:
    assert run(tiny, dynamic, do_sample=False) == tiny.greedy(15).tolist()
    assert run(tiny, dynamic, do_sample=True, top_k=1) == tiny.greedy(15).tolist()


def test_same_seed_same_draw_whatever_the_neighbours(tiny: Any, dynamic: Adapter) -> None:
    options = {"do_sample": True, "top_k": 0, "temperature": 1.3}
    together = run(tiny, dynamic, seeds=SEEDS, **options)
    assert together != tiny.greedy(15).tolist()
    assert run(tiny, dynamic, seeds=SEEDS, **options) == together
    order = [2, 0, 1]
    shuffled = run(tiny, dynamic, rows=order, seeds=[SEEDS[i] for i in order], **options)
    assert shuffled == [together[i] for i in order]
    for row, seed in enumerate(SEEDS):
        assert run(tiny, dynamic, rows=[row], seeds=[seed], **options) == [together[row]]
    others = run(tiny, dynamic, seeds=[11, 99, 33], **options)
    assert (others[0], others[2]) == (together[0], together[2])
    assert others[1] != together[1]


def test_without_seeds_torchs_generator_draws(tiny: Any, dynamic: Adapter) -> None:
    options = {"do_sample": True, "top_k": 0}
    torch.manual_seed(7)
    first = run(tiny, dynamic, **options)
    second = run(tiny, dynamic, **options)
    torch.manual_seed(7)
    assert run(tiny, dynamic, **options) == first != second


def test_each_row_has_its_own_parameters(tiny: Any, dynamic: Adapter) -> None:
    params = prepare_sampling_params(3, top_k=[1, 3, 0], temperature=[1.0, 2.0, 0.0])
    tokens = run(tiny, dynamic, sampling_params=params, seeds=SEEDS)
    greedy = tiny.greedy(15).tolist()
    assert (tokens[0], tokens[2]) == (greedy[0], greedy[2])
    assert tokens[1] != greedy[1]
    assert_within_top_k(tiny, 1, tokens[1], top_k=3)


def assert_within_top_k(tiny: Any, row: int, tokens: list[int], top_k: int) -> None:
    """Each token is one of transformers' `top_k` most likely after those before it."""
    prompt = tiny.ids[row][tiny.mask[row].bool()]
    sequence = torch.cat([prompt, torch.tensor(tokens)])[None]
    with torch.no_grad():
        logits: Tensor = tiny.hf(sequence).logits[0, len(prompt) - 1 : -1]
    likely = logits.topk(top_k).indices.tolist()
    assert all(token in choices for token, choices in zip(tokens, likely, strict=True))


def test_options_of_generate_reach_the_graph(tiny: Any, dynamic: Adapter) -> None:
    options = {"do_sample": True, "top_k": 2, "temperature": 3.0}
    tokens = run(tiny, dynamic, seeds=SEEDS, **options)
    assert tokens != tiny.greedy(15).tolist()
    for row in range(3):
        assert_within_top_k(tiny, row, tokens[row], top_k=2)
    narrow = run(tiny, dynamic, seeds=SEEDS, do_sample=True, top_k=0, top_p=1e-6)
    assert narrow == tiny.greedy(15).tolist()


def test_the_callers_own_warpers_count(tiny: Any, dynamic: Adapter) -> None:
    options = {"do_sample": True, "top_k": 0, "seeds": SEEDS, "temperature": 3.0}
    warpers = LogitsProcessorList([TopKLogitsWarper(1)])
    with pytest.raises(UnsupportedError, match="the order top_k, temperature"):
        run(tiny, dynamic, logits_processor=warpers, **options)
    options["temperature"] = 1.0
    assert run(tiny, dynamic, logits_processor=warpers, **options) == tiny.greedy(15).tolist()
    keeping = LogitsProcessorList([TopPLogitsWarper(0.1, min_tokens_to_keep=2)])
    with pytest.raises(UnsupportedError, match="TopPLogitsWarper"):
        run(tiny, dynamic, logits_processor=keeping, **options)


def test_what_the_graph_cannot_sample_is_refused(tiny: Any, dynamic: Adapter) -> None:
    with pytest.raises(UnsupportedError, match="MinPLogitsWarper"):
        run(tiny, dynamic, do_sample=True, min_p=0.1)


def test_static_sampling(tiny: Any) -> None:
    config = OnDeviceSamplingConfig(do_sample=True, top_k=2, temperature=3.0)
    adapter = tiny.adapter(on_device_sampling_config=config)
    model = adapter.neuron_model
    first = {
        int(model(tiny.ids, attention_mask=tiny.mask, seeds=[seed] * 3).tokens[1])
        for seed in range(40)
    }
    assert len(first) == 2
    for token in first:
        assert_within_top_k(tiny, 1, [token], top_k=2)
    assert run(tiny, adapter, do_sample=False) == tiny.greedy(15).tolist()


def test_deterministic_sampling_needs_no_seed(tiny: Any) -> None:
    config = OnDeviceSamplingConfig(dynamic=True, deterministic=True)
    adapter = tiny.adapter(on_device_sampling_config=config)
    options = {"do_sample": True, "top_k": 0, "temperature": 2.0}
    assert run(tiny, adapter, **options) == run(tiny, adapter, **options)
    assert run(tiny, adapter, **options) != tiny.greedy(15).tolist()


@pytest.mark.parametrize("given", ["seeds", "sampling_params"])
def test_inputs_of_the_graph_are_refused_on_the_host(given: str, tiny: Any, host: Adapter) -> None:
    values = {"seeds": SEEDS, "sampling_params": prepare_sampling_params(3, top_k=4)}
    with pytest.raises(UnsupportedError, match=rf"{given} belong to sampling in the graph"):
        run(tiny, host, do_sample=True, **{given: values[given]})


def test_sampling_params_of_a_greedy_graph(tiny: Any, greedy: Adapter) -> None:
    assert run(tiny, greedy, sampling_params=prepare_sampling_params(3)) == tiny.greedy(15).tolist()
    with pytest.raises(ConfigError, match="compiled without sampling"):
        run(tiny, greedy, sampling_params=prepare_sampling_params(3, top_k=5))


def test_one_seed_per_row(tiny: Any, dynamic: Adapter) -> None:
    with pytest.raises(ConfigError, match="2 seeds for 3 rows"):
        run(tiny, dynamic, do_sample=True, seeds=[1, 2])
    with pytest.raises(ShapeError, match=r"sampling_params has shape \(2, 3\), needs \(3, 3\)"):
        run(tiny, dynamic, sampling_params=prepare_sampling_params(2))
