"""Estimates a model: every graph of its plan, its memory, and a request of given lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nxdi.errors import ConfigError
from nxdi.graph.plan import GraphSpec
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.tools.benchmark.stages import Workload
from nxdi.tools.estimate.count import GraphCounter
from nxdi.tools.estimate.hardware import Hardware
from nxdi.tools.estimate.kernels import Step, find_problems
from nxdi.tools.estimate.times import PUBLISHED, Efficiency, Times, predict
from nxdi.tools.estimate.work import Work
from nxdi.tools.model_info.memory import plan_caches, plan_weights
from nxdi.tools.model_info.records import GraphUse
from nxdi.tools.model_info.request import plan_request
from nxdi.types import Phase


@dataclass(frozen=True)
class GraphEstimate:
    """One step of one graph, on each rank."""

    spec: GraphSpec
    work: Work
    times: Times


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. workspace: the activations of the largest product of any graph."""

    weights: int
    caches: int
    workspace: int
    usable: int

    @property
    def total(self) -> int:
        return self.weights + self.caches + self.workspace

    @property
    def fits(self) -> bool:
        return self.total <= self.usable


@dataclass(frozen=True)
class Speculation:
    """acceptance_length: tokens that a verify step yields on average, its own one included.

    draft_seconds: what making the proposals of a step takes; 0 for prompt lookup.
    """

    acceptance_length: float
    draft_seconds: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A model under one set of options.

    first_token: from the start of a prefill to its token; per_token: of the median token after it;
    request_seconds: of the whole workload. problems: what is padded, and kernels that decline.
    """

    model: str
    hardware: Hardware
    workload: Workload
    memory: Memory
    graphs: tuple[GraphEstimate, ...]
    first_token: Times
    per_token: Times
    request_seconds: float
    problems: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all rows over the time of the workload."""
        return self.workload.num_rows * self.workload.new_tokens / self.request_seconds

    @property
    def bound(self) -> str:
        """What a token takes longest for."""
        return (self.per_token if self.workload.new_tokens > 1 else self.first_token).bound


def estimate_model(
    app: NeuronApplicationBase,
    hardware: Hardware,
    workload: Workload,
    speculation: Speculation | None = None,
    efficiency: Efficiency = PUBLISHED,
) -> Estimate:
    """What `app` will need and how fast it will be, from its config alone.

    Raises: BucketError for a workload that fits no graph; ConfigError for an acceptance length that
    no verify step can have, or a missing one.
    """
    _check_speculation(app.neuron_config.speculation_length, speculation)
    uses = plan_request(app.plan, app.neuron_config, **vars(workload)).steps
    counter, dtype = GraphCounter(app), app.neuron_config.compute_dtype
    graphs = {}
    for spec in app.plan.graphs:
        work = counter.count(spec)
        times = predict(work, spec.phase, hardware, dtype, efficiency)
        graphs[spec.name] = GraphEstimate(spec, work, times)
    prefill = [graphs[use.graph].times.scaled(use.num_steps) for use in uses if _is_prefill(use)]
    later = [use for use in uses if not _is_prefill(use)]
    tokens = [_token(app, graphs, use, workload.num_rows, speculation) for use in later]
    first = sum(prefill, Times())
    seconds = (use.num_steps * time.total for use, time in zip(later, tokens, strict=True))
    weights = plan_weights(app, counter.model(Phase.DECODE))
    every = tuple(graphs.values())
    steps = [Step(graph.spec, graph.work, counter.model(graph.spec.phase)) for graph in every]
    return Estimate(
        model=app.model_path.resolve().name,
        hardware=hardware,
        workload=workload,
        memory=Memory(
            weights=weights.bytes_of(0),  # ranks have tensors of the same shapes
            caches=sum(c.num_bytes for c in plan_caches(app, counter.model(Phase.DECODE))),
            workspace=max(graph.work.workspace_bytes for graph in every),
            usable=hardware.usable_memory,
        ),
        graphs=every,
        first_token=first,
        per_token=_median(later, tokens),
        request_seconds=first.total + sum(seconds),
        problems=tuple(find_problems(app, weights.wanted, steps)),
    )


def _is_prefill(use: GraphUse) -> bool:
    return use.first_token == 1


def _token(
    app: NeuronApplicationBase,
    graphs: Mapping[str, GraphEstimate],
    use: GraphUse,
    num_rows: int,
    speculation: Speculation | None,
) -> Times:
    """What a further token of each row takes in its graph, or its share of a verify step."""
    decode = graphs[use.graph]
    if speculation is None:
        return decode.times
    verified = app.neuron_config.speculation_length
    spec = app.plan.choose(Phase.VERIFY, num_rows, verified, decode.spec.length)
    step = replace(graphs[spec.name].times, draft=speculation.draft_seconds)
    return step.scaled(1 / speculation.acceptance_length)


def _median(uses: Sequence[GraphUse], tokens: Sequence[Times]) -> Times:
    """That of the token in the middle; nothing if there is no token after the first."""
    if not uses:
        return Times()
    middle = (uses[0].first_token + uses[-1].last_token) // 2
    return next(t for use, t in zip(uses, tokens, strict=True) if middle <= use.last_token)


def _check_speculation(verified: int, speculation: Speculation | None) -> None:
    if speculation is None:
        if verified:
            raise ConfigError(
                f"speculation_length={verified} needs an acceptance_length, the tokens that a step "
                f"yields on average: between 1 and {verified}"
            )
        return
    length = speculation.acceptance_length
    if not 1 <= length <= verified:
        raise ConfigError(
            f"acceptance_length={length} is not between 1 and speculation_length={verified}, the "
            "tokens that one step verifies; change one of them"
        )
