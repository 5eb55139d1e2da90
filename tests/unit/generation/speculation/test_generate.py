"""generate() with speculation gives what it gives without, whoever proposes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter as Adapter
from tiny_models import VOCAB_SIZE

PROPOSERS = ("lookup", "near", "far", "target")
SAMPLES = {"on_device_sampling_config": {"dynamic": True}}
PAGED = {"is_block_kv_layout": True, "pa_block_size": 8}
MODELS: dict[str, dict[str, Any]] = {
    "logits": {},
    "blocks": PAGED,
    "graph samples, ahead, blocks": {**SAMPLES, **PAGED, "async_mode": True},
}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "stops": {"eos_token_id": [7, 8, 9, 10, 11, 12, 13], "pad_token_id": 0},
    "penalty": {"repetition_penalty": 1.3, "eos_token_id": [7, 8, 9], "pad_token_id": 0},
    "sampled": {"do_sample": True, "top_k": 20, "seeds": [1, 2, 3]},
}


def prompts() -> tuple[Tensor, Tensor]:
    """Three rows padded on the left."""
    ids = torch.randint(1, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row, padding in ((0, 4), (2, 1)):
        ids[row, :padding] = mask[row, :padding] = 0
    return ids, mask


@pytest.fixture(scope="module")
def adapters(folders: Any) -> dict[str, tuple[Adapter, dict[str, Adapter]]]:
    """A target of each kind, and its drafts, whose tokens are chosen as the target's."""
    made = {}
    for kind, options in MODELS.items():
        own = {name: value for name, value in options.items() if name in SAMPLES}
        drafts = {
            name: Adapter(folders.app(name, **{**own, "speculation_length": 0}))
            for name in ("near", "far", "target")
        }
        made[kind] = folders.adapter(**options), drafts
    return made


def proposing(who: str, drafts: dict[str, Adapter]) -> dict[str, Any]:
    return {"prompt_lookup_num_tokens": 3} if who == "lookup" else {"assistant_model": drafts[who]}


@pytest.mark.parametrize("who", PROPOSERS)
@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_those_of_plain_decoding(
    kind: str, request_name: str, who: str, adapters: Any
) -> None:
    adapter, drafts = adapters[kind]
    samples = "on_device_sampling_config" in MODELS[kind]
    if samples is not (request_name == "sampled") and request_name in ("sampled", "penalty"):
        return  # seeds are for graphs that sample, processors for those that do not
    ids, mask = prompts()
    # Up to the last slot of the longest row: the others have room for more.
    options = {"attention_mask": mask, "max_new_tokens": 40, "do_sample": False}
    options |= REQUESTS[request_name]
    expected = adapter.generate(ids, **options)
    assert torch.equal(adapter.generate(ids, **options, **proposing(who, drafts)), expected)


class AtTheFirst(StoppingCriteria):  # type: ignore[misc]  # its base is untyped in 4.57
    """Stops a row at one of some tokens, without transformers' padding of stopped rows."""

    def __init__(self, tokens: set[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([row[-1] in self.tokens for row in input_ids.tolist()])


def test_rows_that_stop_without_padding_go_on_until_all_have(adapters: Any) -> None:
    adapter, drafts = adapters["logits"]
    ids, mask = prompts()
    options = {"attention_mask": mask, "max_new_tokens": 39, "do_sample": False}
    plain = adapter.generate(ids, **options)[:, ids.shape[1] :]
    # Each row stops somewhere else: at 3, at 12, at 20.
    stops = {int(plain[row, place]) for row, place in enumerate((3, 12, 20))}
    options["stopping_criteria"] = [AtTheFirst(stops)]
    expected = adapter.generate(ids, **options)
    assert expected.shape[1] < ids.shape[1] + 39
    for who in PROPOSERS:
        assert torch.equal(adapter.generate(ids, **options, **proposing(who, drafts)), expected)


class Recorder:
    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.got.append(value.tolist())

    def end(self) -> None:
        self.got.append("end")


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_a_streamer_sees_the_same_tokens(num_rows: int, padded: bool, adapters: Any) -> None:
    adapter, drafts = adapters["logits"]
    ids, mask = prompts()
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    options |= {"attention_mask": mask[-num_rows:]}
    options |= REQUESTS["stops"] if padded else {}
    seen = []
    for more in ({}, proposing("near", drafts)):
        recorder = Recorder()
        adapter.generate(ids[-num_rows:], **options, **more, streamer=recorder)
        seen.append(recorder.got)
    assert seen[0] == seen[1]


def test_an_error_of_a_streamer_leaves_no_step_behind(adapters: Any) -> None:
    adapter, _ = adapters["graph samples, ahead, blocks"]
    ids, mask = prompts()

    class Broken(Recorder):
        def put(self, value: Tensor) -> None:
            super().put(value)
            if len(self.got) == 4:
                raise RuntimeError("nobody listens")

    options = {"attention_mask": mask, "do_sample": False, "eos_token_id": 96, "pad_token_id": 0}
    with pytest.raises(RuntimeError, match="nobody listens"):
        adapter.generate(
            ids, **options, max_new_tokens=20, prompt_lookup_num_tokens=3, streamer=Broken()
        )
    expected = adapter.generate(ids, **options, max_new_tokens=9)
    assert expected.shape == (3, 18)


def test_more_prompts_than_rows(adapters: Any) -> None:
    adapter, drafts = adapters["logits"]
    ids, mask = (torch.cat([x, x.flip(0), x[:1]]) for x in prompts())
    options = {"attention_mask": mask, "max_new_tokens": 25, "do_sample": False}
    expected = adapter.generate(ids, **options)
    for who in ("lookup", "near"):
        assert torch.equal(adapter.generate(ids, **options, **proposing(who, drafts)), expected)


def test_options_of_a_generation_config_count(adapters: Any) -> None:
    adapter, _ = adapters["logits"]
    ids, mask = prompts()
    config = GenerationConfig(
        prompt_lookup_num_tokens=2, max_matching_ngram_size=1, max_new_tokens=9, do_sample=False
    )
    plain = adapter.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
    assert torch.equal(adapter.generate(ids, config, attention_mask=mask), plain)
    assert config.prompt_lookup_num_tokens == 2  # the caller's is left as it was


def test_sampling_on_the_host_draws_what_a_twin_proposes(adapters: Any) -> None:
    """A draft that thinks as the target is always right, whatever is drawn."""
    from nxdi.generation.speculation import step

    adapter, drafts = adapters["logits"]
    ids, mask = prompts()
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        add = step.Counts.add
        patch.setattr(
            step.Counts, "add", lambda self, *args: counted.append(args) or add(self, *args)
        )
        torch.manual_seed(0)
        adapter.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=39,
            do_sample=True,
            temperature=1.5,
            top_p=0.95,
            **proposing("target", drafts),
        )
    assert sum(proposed for proposed, _ in counted) > 50
    # Its logits differ in the last bit where a step has another shape.
    assert sum(proposed - kept for proposed, kept in counted) <= 1


def test_what_cannot_be_done_is_refused(adapters: Any, folders: Any) -> None:
    adapter, drafts = adapters["logits"]
    ids, mask = prompts()
    draft = {"assistant_model": drafts["near"], "attention_mask": mask, "max_new_tokens": 4}
    with pytest.raises(UnsupportedError, match="output_scores and output_logits"):
        adapter.generate(ids, **draft, return_dict_in_generate=True, output_scores=True)
    with pytest.raises(UnsupportedError, match="takes one row with speculation, not 3"):
        adapter.generate(ids, **draft, prefix_allowed_tokens_fn=lambda row, tokens: [1, 2])
    with pytest.raises(ConfigError, match="both propose tokens"):
        adapter.generate(ids, **draft, prompt_lookup_num_tokens=2)
    with pytest.raises(ConfigError, match="assistant_model is a str"):
        adapter.generate(ids, assistant_model="draft")
    with pytest.raises(ConfigError, match="speculation_length=4 verifies 3 besides"):
        adapter.generate(ids, prompt_lookup_num_tokens=4)
    with pytest.raises(ConfigError, match="compiled with speculation_length=0"):
        folders.adapter(speculation_length=0).generate(ids, prompt_lookup_num_tokens=1)
