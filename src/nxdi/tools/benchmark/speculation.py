"""What speculation is worth: the same prompts with and without, in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from nxdi.errors import ConfigError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation.own import proposer_of
from nxdi.generation.speculation.proposals import Proposer
from nxdi.generation.speculation.step import Counts
from nxdi.models.causal_lm import NeuronBaseForCausalLM

_TEXT = (
    "The harbour wakes before the town. Boats come in with the tide, and the men on the quay call "
    "out the names of the catch: herring, mackerel, a box of crabs. By eight the auction is over, "
    "the ice is shovelled back, and the gulls have the place to themselves."
)
# Answers that repeat their prompts: what prompt lookup is for.
COPYING_PROMPTS = (
    f"Repeat the following text word for word.\n\n{_TEXT}",
    f"Copy this text exactly, but write 'The port' for 'The harbour'.\n\n{_TEXT}",
    "Repeat this list:\n"
    + "\n".join(f"{n}. item number {n} costs {n * 7} dollars" for n in range(1, 9)),
    "Repeat this code exactly:\n\ndef total(prices):\n    result = 0\n    for price in prices:\n"
    "        result = result + price\n    return result\n",
)


@dataclass(frozen=True)
class SpeculationReport:
    """How proposals fared, and seconds of the fastest run with and without them."""

    counts: Counts
    num_tokens: int
    plain_seconds: float
    seconds: float

    @property
    def speed_up(self) -> float:
        return self.plain_seconds / self.seconds


def measure_speculation(
    model: NeuronBaseForCausalLM,
    proposer: Proposer | None,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    num_runs: int = 5,
    plain: NeuronBaseForCausalLM | None = None,
) -> SpeculationReport:
    """Continue the prompts greedily, with and without speculation in turn; a first run is left out.

    proposer: None for a model that proposes by itself. plain: what decodes without; None: `model`.
    Raises: ConfigError without prompts or runs, if nobody proposes, if `plain` proposes by itself,
    or if the model cannot verify tokens.
    """
    if not prompts or num_runs < 1:
        raise ConfigError(
            f"{len(prompts)} prompts in {num_runs} runs measure nothing; give 1 or more"
        )
    plain = model if plain is None else plain
    if proposer_of(model, proposer) is None or proposer_of(plain, None) is not None:
        raise ConfigError(
            "there must be a model to which somebody proposes tokens, and one to which nobody "
            "does; give a proposer, or a model that proposes by itself and, as `plain`, the same "
            "one compiled without"
        )
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for run in tqdm(range(num_runs + 1), "benchmark", unit="run", disable=None):
        for speculates in (False, True):
            batcher = (
                ContinuousBatcher(model, proposer=proposer)
                if speculates
                else ContinuousBatcher(plain)
            )
            for prompt in prompts:
                batcher.add(prompt, RequestOptions(max_new_tokens=new_tokens))
            start = time.perf_counter()
            done = batcher.run()
            if run:
                seconds[speculates].append(time.perf_counter() - start)
    assert batcher.speculation is not None
    num_tokens = sum(len(completion.tokens) for completion in done.values())
    counts = batcher.speculation.counts
    return SpeculationReport(counts, num_tokens, min(seconds[False]), min(seconds[True]))
