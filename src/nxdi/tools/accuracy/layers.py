"""Where a model first differs from transformers: the token, the layer and the module.

Every module is compared on the same inputs. One forward of the reference over the whole text gives
what each module takes and returns at each position. Ours runs the same text step by step, and
whatever a module returns is compared with the reference and then replaced by it, so that an error
stays where it is made: the first difference names the module that introduces it, and errors of
rounding do not add up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError
from nxdi.graph.plan import GraphSpec
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.accuracy.reference import Prompts, forced_steps, greedy, load_reference
from nxdi.tools.accuracy.tensors import eager_roots, hooked, matching_names, observed
from nxdi.tools.accuracy.trace import (
    ROTARY,
    Trace,
    in_any_order,
    pair_modules,
    relative_errors,
    trace,
)
from nxdi.types import Phase

# Of the largest activation of a token. One module in float32 rounds by up to 2e-6 of that.
TOLERANCE = 2e-5
# An angle is known to some ulps of its float32 value, which grows with the position.
_ANGLE_ULPS = 2**-22


@dataclass(frozen=True)
class Divergence:
    """The first difference.

    token: which generated token was being computed, 0 in the prompt; position: in the whole text;
    layer: None outside the layers; module: where the error is introduced; seen: what differs;
    error: of the largest activation of its token.
    """

    token: int
    phase: str
    row: int
    position: int
    layer: int | None
    module: str
    seen: str
    error: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"generated token {self.token} ({self.phase}, row {self.row}, position "
            f"{self.position}): {self.module} introduces an error of {self.error:.3g}, tolerance "
            f"{self.tolerance:.3g}, seen in {self.seen}"
        )


@dataclass(frozen=True)
class LayerReport:
    """modules: the names of those that could be compared."""

    divergence: Divergence | None
    num_tokens: int
    modules: tuple[str, ...]


def find_divergence(
    model: NeuronBaseForCausalLM,
    prompts: Prompts,
    num_tokens: int,
    reference: nn.Module | None = None,
    tolerance: float = TOLERANCE,
    ignore: Sequence[str] = (),
) -> LayerReport:
    """Compare every module over the prompts and `num_tokens` generated tokens of the reference.

    Modules are compared that have the same name in both models, or the same weights before the
    model's own conversion renames them.
    model: loaded on the eager backend, in float32. With simulated ranks, rank 0 is compared where
    it holds whole activations.
    ignore: modules, or patterns such as "layers.*.mlp", that divide the work otherwise than the
    reference's of the same name; what they do is still compared in what follows them.
    Raises: ConfigError for a model that cannot be compared so, or an unknown name to ignore.
    """
    _check(model)
    ignored = set(matching_names(model, ignore))
    reference = load_reference(model) if reference is None else reference
    tokens, _ = greedy(reference, prompts, num_tokens)
    texts = [torch.cat([row, tokens[:-1, i]]) for i, row in enumerate(prompts.rows)]
    traces = [trace(reference, text, model._STATE_DICT_MODEL_PREFIX) for text in texts]
    ours = [name for name, _ in eager_roots(model)[0][0].named_modules() if name not in ignored]
    pairs = pair_modules(model, ours, traces[0].outputs)
    pieces = _pieces(prompts.lengths, model.plan.max_length(Phase.PREFILL))
    finder = _Finder(traces, prompts.lengths, pairs, tolerance, pieces)
    with ExitStack() as stack:
        stack.enter_context(observed(model, finder.begin))
        for rank, roots in enumerate(eager_roots(model)):
            on_input, on_output = (
                (finder.on_input, finder.on_output) if rank == 0 else (None, finder.replace)
            )
            for root in roots:
                stack.enter_context(hooked(root, pairs, on_input, on_output))
        for logits in forced_steps(model, prompts, tokens):
            finder.check_logits(logits)
            if finder.found is not None:
                break
    return LayerReport(finder.found, num_tokens, tuple(finder.compared))


def _check(model: NeuronBaseForCausalLM) -> None:
    config = model.neuron_config
    if config.torch_dtype is not torch.float32 or config.sequence_parallel_enabled:
        raise ConfigError(
            f"modules are compared in float32 and on whole sequences, not with torch_dtype="
            f"{config.torch_dtype}, sequence_parallel_enabled={config.sequence_parallel_enabled}; "
            "load the model with torch_dtype='float32', sequence_parallel_enabled=False"
        )


class _Span(NamedTuple):
    """Tokens `start` .. `end` - 1 of a text."""

    row: int
    start: int
    end: int


def _pieces(lengths: Sequence[int], longest: int) -> list[_Span]:
    """Prompts as they are computed: a piece of each in turn."""
    return [
        _Span(row, start, min(start + longest, length))
        for start in range(0, max(lengths), longest)
        for row, length in enumerate(lengths)
        if start < length
    ]


class _Place(NamedTuple):
    """Where a tensor of ours has a counterpart: tensor[graph_row, :count] is `expected`."""

    graph_row: int
    row: int
    start: int
    expected: Tensor


@dataclass
class _Finder:
    """Follows the steps of our model, and keeps the first difference.

    pieces: what is left of the prompts.
    """

    traces: list[Trace]
    prompt_lens: list[int]
    pairs: Mapping[str, str]
    tolerance: float
    pieces: list[_Span]
    found: Divergence | None = None
    compared: dict[str, None] = field(default_factory=dict)
    token: int = 0
    _spans: list[_Span] = field(default_factory=list)
    _verified: set[str] = field(default_factory=set)

    def begin(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> None:
        """A graph is about to run. Prompts of many rows, or long ones, take several."""
        self._spec, self._verified = spec, set()
        if spec.phase is Phase.DECODE:
            self.token += 1
            ends = [length + self.token for length in self.prompt_lens]
            self._spans = [_Span(row, end - 1, end) for row, end in enumerate(ends)]
        else:
            num_rows = int((inputs["position_ids"] >= 0).any(dim=1).sum())
            self._spans, self.pieces = self.pieces[:num_rows], self.pieces[num_rows:]

    def on_input(self, name: str, tensor: Tensor) -> None:
        if self._compare(name, tensor, "inputs", self._introducer(name.rpartition(".")[0])):
            self._verified.add(name)

    def on_output(self, name: str, tensor: Tensor) -> Tensor | None:
        # Angles come from positions, which are no activation.
        is_isolated = name in self._verified or name.endswith(ROTARY)
        module = name if is_isolated else self._introducer(name)
        self._compare(name, in_any_order(name, tensor), "outputs", module)
        return self.replace(name, tensor)

    def replace(self, name: str, tensor: Tensor) -> Tensor | None:
        """What the reference's module returned, in the shape of ours."""
        places = self._places(name, tensor, "outputs")
        if not places or name.endswith(ROTARY):
            return None
        new = tensor.clone()
        for place in places:
            new[place.graph_row, : len(place.expected)] = place.expected.to(tensor.dtype)
        return new

    def check_logits(self, logits: Tensor) -> None:
        """Compare the model's own output [B, V], after whatever follows lm_head."""
        for row, one in enumerate(self.traces):
            position = self.prompt_lens[row] + self.token - 1
            place = _Place(row, row, position, one.logits[position : position + 1])
            self._judge(logits[:, None], place, "logits", "the logits after lm_head", 0.0)

    def _introducer(self, name: str) -> str:
        """The innermost module around `name` that was given what the reference was given."""
        while name and name not in self._verified:
            name = name.rpartition(".")[0]
        return name or "model"

    def _compare(self, name: str, tensor: Tensor, kind: str, module: str) -> bool:
        """Whether it could be compared and agrees."""
        places = self._places(name, tensor, kind)
        if places and kind == "outputs":
            self.compared[name] = None
        seen = f"what {name} {'takes' if kind == 'inputs' else 'returns'}"
        per_position = _ANGLE_ULPS if name.endswith(ROTARY) else 0.0
        agreed = [self._judge(tensor, place, module, seen, per_position) for place in places]
        return bool(places) and all(agreed)

    def _judge(
        self, tensor: Tensor, place: _Place, module: str, seen: str, per_position: float
    ) -> bool:
        count = len(place.expected)
        errors = relative_errors(tensor[place.graph_row, :count], place.expected)
        tolerance = self.tolerance + per_position * (place.start + count)
        wrong = (errors > tolerance).nonzero()
        if len(wrong) and self.found is None:
            layer = re.search(r"\blayers\.(\d+)\b", module)
            self.found = Divergence(
                token=self.token,
                phase=self._spec.phase.value,
                row=place.row,
                position=place.start + int(wrong[0]),
                layer=int(layer.group(1)) if layer else None,
                module=module,
                seen=seen,
                error=float(errors.max()),
                tolerance=tolerance,
            )
        return not len(wrong)

    def _places(self, name: str, tensor: Tensor, kind: str) -> list[_Place]:
        """Empty if the tensor has another form than the reference's: a rank's part of it."""
        key, places = self.pairs[name], []
        for graph_row, (row, start, end) in enumerate(self._spans):
            expected = getattr(self.traces[row], kind).get(key)
            if expected is None or not self._is_alike(tensor, expected):
                return []
            if tensor.shape[1] < self._spec.num_tokens:
                start = end - 1  # only the last token's is left
            places.append(_Place(graph_row, row, start, expected[start:end]))
        return places

    def _is_alike(self, tensor: Tensor, expected: Tensor) -> bool:
        return (
            tensor.dim() == expected.dim() + 1
            and tensor.shape[0] == self._spec.batch_size
            and tensor.shape[1] in (1, self._spec.num_tokens)
            and tensor.shape[2:] == expected.shape[1:]
        )
