from __future__ import annotations

import pytest
import torch

from nxdi.errors import ConfigError, ShapeError
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM
from nxdi.tools.accuracy.reference import Prompts, forced_steps, greedy, load_reference
from nxdi.tools.accuracy.report import random_prompts
from tolerances import LOGITS_FP32

PROMPTS = random_prompts(2, 9, 97)


def test_prompts_are_padded_on_the_left_whatever_side_they_came_from() -> None:
    right = Prompts.of(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]))
    left = Prompts.of(torch.tensor([[1, 2, 3], [0, 0, 4]]), torch.tensor([[1, 1, 1], [0, 0, 1]]))
    for prompts in (right, left):
        assert prompts.lengths == [3, 1]
        ids, mask = prompts.batch(pad_token_id=9)
        assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
        assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("shape", "mask"),
    [((3,), None), ((1, 3), [[1, 1]]), ((2, 2), [[1, 1], [0, 0]])],
)
def test_unusable_prompts_are_refused(shape: tuple[int, ...], mask: list[list[int]] | None) -> None:
    ids = torch.ones(shape, dtype=torch.long)
    with pytest.raises(ShapeError, match="at least one token"):
        Prompts.of(ids, None if mask is None else torch.tensor(mask))


def test_greedy_is_what_transformers_generates(app: NeuronBaseForCausalLM) -> None:
    reference = load_reference(app)
    assert {p.dtype for p in reference.parameters()} == {torch.float32}
    tokens, logits = greedy(reference, PROMPTS, 6)
    assert logits.shape == (6, 2, 97)
    for row, prompt in enumerate(PROMPTS.rows):
        wanted = reference.generate(prompt[None], max_new_tokens=6, do_sample=False)  # type: ignore[operator]  # transformers' model
        assert tokens[:, row].tolist() == wanted[0, len(prompt) :].tolist()


def test_our_steps_are_given_the_tokens_they_are_told(app: NeuronBaseForCausalLM) -> None:
    reference = load_reference(app)
    tokens = torch.randint(97, (4, 2), generator=torch.Generator().manual_seed(1))
    logits = torch.stack(list(forced_steps(app, PROMPTS, tokens)))
    for row, prompt in enumerate(PROMPTS.rows):
        text = torch.cat([prompt, tokens[:-1, row]])
        wanted = reference(input_ids=text[None]).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(logits[:, row], wanted, rtol=0, atol=LOGITS_FP32)


def test_graphs_without_logits_are_refused(
    app: NeuronBaseForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(app), "forward", lambda *args, **keywords: CausalLMOutput())
    with pytest.raises(ConfigError, match="output_logits=True"):
        next(forced_steps(app, PROMPTS, torch.zeros(2, 2, dtype=torch.long)))
