"""The plan of a model: graphs, memory per rank, kernels, and options without effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nxdi.config import kernel_options, no_op_options, serialize
from nxdi.config.quantization import WeightQuantization
from nxdi.graph.plan import GraphSpec
from nxdi.kernels.registry import Choice, by_kernel
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.modules.quantization import quantized_names, scale_name
from nxdi.runtime.backends.preview import preview_kernels
from nxdi.runtime.estimate import memory_of
from nxdi.tools.model_info.memory import plan_caches, plan_weights
from nxdi.tools.model_info.notes import (
    pool_notes,
    quantization_notes,
    rolling_notes,
    sharding_notes,
    tied_notes,
)
from nxdi.tools.model_info.records import GraphInfo, KernelInfo, ModelInfo, NoOpInfo
from nxdi.tools.model_info.request import plan_request
from nxdi.types import Phase


def describe_model(
    app: NeuronApplicationBase, requests: Sequence[tuple[int, int, int]] = ()
) -> ModelInfo:
    """What compiling and loading `app` will make. Only headers of the weights are read, if any.

    requests: (prompt tokens, new tokens, prompts) of requests whose graphs to name.
    Raises: BucketError for a request that fits no graph.
    """
    config, module = app.neuron_config, app.build(Phase.DECODE)
    weights, caches = plan_weights(app, module), plan_caches(app, module)
    wanted, full = weights.wanted, weights.full
    kernels = preview_kernels(app.program(), app.backend.name, kernel_options(config))
    return ModelInfo(
        model=app.model_path.name,
        architecture=type(app).__name__,
        backend=app.backend.name,
        torch_dtype=str(config.torch_dtype).removeprefix("torch."),
        tp_degree=config.tp_degree,
        num_parameters=_num_parameters(module, full, app.weight_quantization()),
        weight_bytes=tuple(map(weights.bytes_of, range(app.num_ranks))),
        cache_bytes=sum(cache.num_bytes for cache in caches),
        caches=caches,
        notes=(
            *quantization_notes(module, app.weight_quantization(), app.stored_quantization()),
            *tied_notes(wanted, full, weights.shares),
            *sharding_notes(wanted, app.num_ranks),
            *rolling_notes(module),
            *pool_notes(config),
        ),
        no_op_options=tuple(
            NoOpInfo(name, serialize.encode(value, name), reason)
            for name, value, reason in no_op_options(config)
        ),
        graphs=tuple(_graph(spec, kernels[spec.name]) for spec in app.plan.graphs),
        requests=tuple(plan_request(app.plan, config, *request) for request in requests),
    )


def _num_parameters(
    model: nn.Module, full: Mapping[str, Tensor], kept: WeightQuantization | None
) -> int:
    """Of the model that quantized weights stand for."""
    quantized = quantized_names(model)
    scales = {scale_name(name) for name in quantized}
    per_element = dict.fromkeys(quantized, 2 if kept is not None and kept.is_packed else 1)
    return sum(
        {
            memory_of(tensor): tensor.numel() * per_element.get(name, 1)
            for name, tensor in full.items()
            if name not in scales
        }.values()
    )


def _graph(spec: GraphSpec, choices: Sequence[Choice]) -> GraphInfo:
    return GraphInfo(
        name=spec.name,
        phase=spec.phase.value,
        batch_size=spec.batch_size,
        length=spec.length,
        inputs=spec.input_shapes(),
        outputs=spec.outputs,
        kernels=tuple(
            KernelInfo(c.op, c.chosen, c.is_reference, dict(c.refused), layers)
            for c, layers in by_kernel(choices).items()
        ),
    )
