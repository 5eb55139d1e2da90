"""The rules that keep one model source valid for every backend, checked on exported graphs.

State is functional but for one copy at the root; integers are int32 at the edges; nothing is
float64; no program depends on the rank; each block has the collectives it should have; nothing is
used that Neuron is known to compute otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from collective_counts import collectives_of_step
from nxdi.config import OnDeviceSamplingConfig
from nxdi.kernels.registry import platform
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.model_base import NeuronBaseModel
from nxdi.models.registry import ARCHITECTURES
from nxdi.modules.kvcache import contiguous
from nxdi.modules.norm import RMSNorm
from nxdi.parallel_layers.groups import SimulatedWorld, acting_as
from nxdi.runtime.backends.cpu.pieces import Piece, example_arguments, plan_parts
from nxdi.tools.lowering.lint import find_divergences
from nxdi.types import Phase
from tiny_eagle import KINDS, make_fused_head, save_agreeing
from tiny_models import (
    COMPILED,
    FAMILIES,
    load_app,
    make_app,
    save_tiny,
    tiny_hf_model,
)
from tolerances import CACHE_FP32

# Two kinds of layers where a family has them, and windows shorter than the sequences here.
PARTICULAR: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "llama4": {"attention_chunk_size": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma2": {"sliding_window": 8},
    "gemma3": {"sliding_window": 8},
    "cohere2": {
        "sliding_window": 8,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
SAMPLING = OnDeviceSamplingConfig(dynamic=True)
SEQ_LEN, ROWS, LAYERS = 16, 2, 2
SIZES = {
    "seq_len": SEQ_LEN,
    "batch_size": ROWS,
    "on_device_sampling_config": SAMPLING,
    "output_logits": True,
}
CACHES = {f"caches_{i}" for i in range(2 * LAYERS)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: save_tiny(
            tiny_hf_model(family, **PARTICULAR.get(family, {})), tmp_path_factory.mktemp(family)
        )
        for family in FAMILIES
    }


def export(
    folder: Path, phase: Phase, part_index: int | None = None, rank: int = 0, **options: Any
) -> ExportedProgram:
    """The graph that rank `rank` makes of a whole step, with the kernels that Neuron has.

    With `part_index` that of one of the pieces that the cpu backend compiles, with its kernels.
    """
    return export_step(make_app(folder, **{**SIZES, **options}), phase, part_index, rank)


def export_step(
    app: NeuronBaseForCausalLM, phase: Phase, part_index: int | None = None, rank: int = 0
) -> ExportedProgram:
    world = SimulatedWorld(app.neuron_config.tp_degree)
    with pytest.MonkeyPatch.context() as patch, acting_as(world, rank):
        if part_index is None and not app.neuron_config.proposes_in_graph:
            patch.setattr(NeuronBaseModel, "composes", False)
        model: Any = app.build(phase)
        spec = app.plan.of(phase)[0]
        part = plan_parts(model, spec)[part_index or 0]
        arguments = example_arguments(model, part, spec)
        with torch.no_grad(), platform("neuron" if part_index is None else "cpu"):
            return torch.export.export(Piece(part), arguments, strict=False)


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path]) -> Callable[[str, Phase], ExportedProgram]:
    """The whole step of a family on two ranks."""
    made: dict[tuple[str, Phase], ExportedProgram] = {}

    def get(family: str, phase: Phase) -> ExportedProgram:
        if (family, phase) not in made:
            made[family, phase] = export(folders[family], phase, tp_degree=2)
        return made[family, phase]

    return get


def calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def placeholders(program: ExportedProgram) -> dict[str, Tensor]:
    nodes = program.graph.nodes
    return {node.name: node.meta["val"] for node in nodes if node.op == "placeholder"}


def mutating(program: ExportedProgram) -> list[Node]:
    return [
        node
        for node in calls(program)
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    ]


def check_state(program: ExportedProgram, caches: set[str]) -> None:
    writes = mutating(program)
    assert {node.target for node in writes} <= {torch.ops.aten.copy_.default}
    assert sorted(node.args[0].name for node in writes) == sorted(caches)
    assert calls(program)[len(calls(program)) - len(writes) :] == writes


def check_dtypes(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            assert not isinstance(tensor, Tensor) or tensor.dtype != torch.float64, node
    outputs = program.graph.output_node().args[0]
    edges = [*placeholders(program).values(), *(node.meta["val"] for node in outputs)]
    assert {tensor.dtype for tensor in edges} <= {torch.int32, torch.float32}


def check_functional(program: ExportedProgram, caches: set[str]) -> None:
    """The same of what torch makes of a program: operations taken apart, writes as outputs."""
    functional = program.run_decompositions()
    signature = functional.graph_signature
    assert set(signature.user_inputs_to_mutate.values()) == caches
    assert not signature.buffers_to_mutate
    check_dtypes(functional)


def collectives(program: ExportedProgram) -> Counter[str]:
    """How often each collective occurs; all must span the mesh [[0, 1]]."""
    found = [node for node in calls(program) if str(node.target).startswith("nxdi.")]
    assert all(list(node.args[-2:]) == [[0, 1], 2] for node in found)
    return Counter(str(node.target).split(".")[1] for node in found)


PHASES = (Phase.PREFILL, Phase.DECODE)  # of a model whose prompts come whole
every_graph = pytest.mark.parametrize(
    ("family", "phase"), [(family, phase) for family in FAMILIES for phase in PHASES]
)
Whole = Callable[[str, Phase], ExportedProgram]


def every_graph_but(*few: tuple[str, Phase]) -> pytest.MarkDecorator:
    """These few always, and the others among the slow tests."""
    every = [(family, phase) for family in FAMILIES for phase in PHASES]
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        ("family", "phase"),
        [pytest.param(*each, marks=() if each in few else slow) for each in every],
    )


def test_every_registered_model_is_here() -> None:
    assert {type(tiny_hf_model(family)).__name__ for family in FAMILIES} == set(ARCHITECTURES)
    assert PARTICULAR.keys() <= set(FAMILIES)


@every_graph
def test_a_step_writes_its_caches_once_at_the_end(family: str, phase: Phase, whole: Whole) -> None:
    check_state(whole(family, phase), CACHES)


@every_graph_but(*((family, Phase.DECODE) for family in ("llama", "gpt2")))
def test_nothing_else_when_taken_apart(family: str, phase: Phase, whole: Whole) -> None:
    check_functional(whole(family, phase), CACHES)


@every_graph
def test_int32_at_the_edges_and_no_float64(family: str, phase: Phase, whole: Whole) -> None:
    check_dtypes(whole(family, phase))


@every_graph
def test_every_declared_input_arrives(family: str, phase: Phase, whole: Whole) -> None:
    tokens = SEQ_LEN if phase is Phase.PREFILL else 1
    inputs = [
        (tuple(tensor.shape), tensor.dtype)
        for name, tensor in placeholders(whole(family, phase)).items()
        if name.startswith("inputs_")
    ]
    assert inputs == [
        ((ROWS, tokens), torch.int32),
        ((ROWS, tokens), torch.int32),
        ((ROWS,), torch.int32),
        ((ROWS, 3), torch.float32),
        ((ROWS,), torch.float32),
    ]


@every_graph_but(*((family, Phase.PREFILL) for family in FAMILIES))
def test_all_ranks_run_one_program(
    family: str, phase: Phase, whole: Whole, folders: dict[str, Path]
) -> None:
    other = export(folders[family], phase, rank=1, tp_degree=2)
    assert other.graph_module.code == whole(family, phase).graph_module.code


@every_graph
def test_collectives_of_tensor_parallelism(family: str, phase: Phase, whole: Whole) -> None:
    expected = collectives_of_step(family, LAYERS)
    assert collectives(whole(family, phase)) == expected


@every_graph
def test_nothing_that_neuron_computes_otherwise(family: str, phase: Phase, whole: Whole) -> None:
    """The cases of each rule are in the unit tests of the lint."""
    assert find_divergences(whole(family, phase)) == []


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in ("llama", "mistral") else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_a_verify_graph_keeps_the_same_rules(family: str, folders: dict[str, Path]) -> None:
    program = export(folders[family], Phase.VERIFY, tp_degree=2, speculation_length=4)
    check_state(program, CACHES)
    check_dtypes(program)
    shapes = [tuple(t.shape) for n, t in placeholders(program).items() if n.startswith("inputs_")]
    assert shapes == [(ROWS, 4), (ROWS, 4), (ROWS,), (ROWS, 3), (ROWS, 4)]
    assert collectives(program) == collectives_of_step(family, LAYERS)
    assert find_divergences(program) == []


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in ("mistral", "gpt2") else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_a_verify_graph_of_trees_keeps_the_same_rules(
    family: str, folders: dict[str, Path]
) -> None:
    tree = {"speculation_length": 4, "token_tree_config": {"0": [1, 2], "1": [3]}}
    program = export(folders[family], Phase.VERIFY, tp_degree=2, **tree)
    check_state(program, CACHES)
    check_dtypes(program)
    shapes = [tuple(t.shape) for n, t in placeholders(program).items() if n.startswith("inputs_")]
    own = [(ROWS, 4), (ROWS, 4, 4)]
    assert shapes == [(ROWS, 4), (ROWS, 4), (ROWS,), *own, (ROWS, 3), (ROWS, 4)]
    assert collectives(program) == collectives_of_step(family, LAYERS)
    assert find_divergences(program) == []


@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.DECODE, Phase.VERIFY])
def test_heads_that_propose_keep_every_rule(phase: Phase, folders: dict[str, Path]) -> None:
    """Each has two gathers: of its residual block, and of its lm_head."""
    heads = {"is_medusa": True, "num_medusa_heads": 2, "medusa_speculation_length": 4}
    program = export(folders["llama"], phase, tp_degree=2, **heads, medusa_tree=[[0], [1], [0, 0]])
    check_state(program, CACHES)
    check_dtypes(program)
    expected = collectives_of_step("llama", LAYERS) + Counter(all_gather=2 * 2)
    assert collectives(program) == expected
    assert find_divergences(program) == []


@pytest.mark.parametrize(
    ("phase", "own"),
    [
        (Phase.VERIFY, {"is_block_kv_layout": True, "pa_block_size": 4}),
        pytest.param(
            Phase.EXTEND,
            {"is_block_kv_layout": True, "pa_block_size": 4},
            marks=pytest.mark.slow,
        ),
        *(pytest.param(phase, {}, marks=pytest.mark.slow) for phase in Phase),
    ],
)
def test_a_head_in_the_graph_keeps_every_rule(
    phase: Phase, own: dict[str, Any], tmp_path: Path
) -> None:
    """Its cache, those of the target's five layers, and the features that are kept."""
    options = {**SIZES, **KINDS["eagle3"], **own, "tp_degree": 2, "chunked_prefill_config": {}}
    _, *pair = save_agreeing(tmp_path, **KINDS["eagle3"])
    program = export_step(make_fused_head(*pair, **options), phase)
    caches = {f"caches_{i}" for i in range(2 * (1 + 5) + 1)}
    check_state(program, caches)
    check_dtypes(program)
    assert collectives(program)
    assert find_divergences(program) == []


@pytest.mark.parametrize("phase", PHASES)
def test_collectives_of_sequence_parallelism(phase: Phase, folders: dict[str, Path]) -> None:
    """Per layer two gathers and two scattered sums, for many tokens; decode does without."""
    program = export(folders["llama"], phase, tp_degree=2, sequence_parallel_enabled=True)
    prefill = Counter(all_gather=2 * LAYERS + 2, reduce_scatter=2 * LAYERS, all_to_all=1)
    decode = Counter(all_gather=2, all_reduce=2 * LAYERS)
    assert collectives(program) == (prefill if phase is Phase.PREFILL else decode)


def test_collectives_of_tokens_sent_to_their_experts(folders: dict[str, Path]) -> None:
    """Per layer they are sent there and back, and no rank sees them all but for attention."""
    options = {"moe_ep_degree": 2, "ep_dispatch_cc_option": "A2A"}
    program = export(
        folders["mixtral"], Phase.PREFILL, tp_degree=2, sequence_parallel_enabled=True, **options
    )
    expected = Counter(all_gather=LAYERS + 2, reduce_scatter=LAYERS, all_to_all=2 * LAYERS + 1)
    assert collectives(program) == expected


def test_collectives_of_a_vocabulary_over_ranks(folders: dict[str, Path]) -> None:
    """The rank comes as a weight, and the embedding is summed."""
    programs = [
        export(folders["llama"], Phase.DECODE, rank=rank, tp_degree=2, vocab_parallel=True)
        for rank in range(2)
    ]
    assert programs[0].graph_module.code == programs[1].graph_module.code
    assert collectives(programs[0]) == Counter(all_reduce=2 * LAYERS + 1, all_gather=1)


def test_one_rank_needs_no_collectives(folders: dict[str, Path]) -> None:
    assert collectives(export(folders["llama"], Phase.DECODE)) == Counter()


@pytest.mark.parametrize(
    ("part_index", "caches", "expected"),
    [(0, {"caches_0", "caches_1"}, Counter(all_reduce=2)), (-1, set(), Counter(all_gather=1))],
)
@pytest.mark.parametrize("phase", PHASES)
def test_pieces_obey_the_same_rules(
    folders: dict[str, Path],
    phase: Phase,
    part_index: int,
    caches: set[str],
    expected: Counter[str],
) -> None:
    exported = export(folders["llama"], phase, part_index, tp_degree=2)
    check_state(exported, caches)
    check_dtypes(exported)
    check_functional(exported, caches)
    assert collectives(exported) == expected


def in_place(cache: Tensor, new: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """Writes into the cache itself."""
    heads = torch.arange(cache.shape[1])
    where = (rows.long()[:, None, None], heads[None, :, None], slots.long()[:, None, :])
    return cache.index_put_(where, new)


def in_float64(self: RMSNorm, x: Tensor) -> Tensor:
    return (x.double() * self.weight).float()


@pytest.mark.parametrize(
    ("owner", "name", "fault", "check"),
    [
        (contiguous, "write_slots", in_place, lambda program: check_state(program, CACHES)),
        (RMSNorm, "forward", in_float64, check_dtypes),
    ],
)
def test_the_rules_can_fail(
    monkeypatch: pytest.MonkeyPatch,
    folders: dict[str, Path],
    owner: Any,
    name: str,
    fault: Callable[..., Tensor],
    check: Callable[[ExportedProgram], None],
) -> None:
    monkeypatch.setattr(owner, name, fault)
    exported = export(folders["llama"], Phase.DECODE)
    with pytest.raises(AssertionError):
        check(exported)


# A real step changes the expected places of each cache, and no others.

MODELS = {"qwen2": 1, "mistral": 2}  # family -> tp_degree: a plain cache, and a rolling one
WINDOW = 24
MARK = 9.0


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NeuronBaseForCausalLM]:
    made: dict[tuple[str, str], NeuronBaseForCausalLM] = {}

    def get(family: str, backend: str) -> NeuronBaseForCausalLM:
        if (family, backend) not in made:
            folder = save_tiny(tiny_hf_model(family), tmp_path_factory.mktemp(family))
            options = {**COMPILED, "tp_degree": MODELS[family], "backend": backend}
            made[family, backend] = load_app(folder, **options)
        return made[family, backend]

    return get


def places_written(
    app: NeuronBaseForCausalLM, *args: Tensor, **kwargs: Tensor
) -> set[tuple[int, int]]:
    """(row, slot) that one step changed: the same in every cache of every rank, in all heads."""
    caches = [cache for rank in app.runner.executables for cache in rank.caches]
    for cache in caches:
        cache.fill_(MARK)
    app(*args, **kwargs)
    caches = [cache for rank in app.runner.executables for cache in rank.caches]
    changed = [cache != MARK for cache in caches]
    assert all(torch.equal(x.any(dim=(1, 3)), x.all(dim=(1, 3))) for x in changed)
    found = [{tuple(place) for place in x.any(dim=(1, 3)).nonzero().tolist()} for x in changed]
    assert all(places == found[0] for places in found)
    return found[0]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("family", "backend"),
    [
        # Compiling takes half a minute each.
        pytest.param(family, backend, marks=pytest.mark.slow if backend == "cpu" else ())
        for family in MODELS
        for backend in ("eager", "cpu")
    ],
)
def test_a_step_changes_the_places_of_its_tokens(
    loaded: Callable[..., NeuronBaseForCausalLM], family: str, backend: str
) -> None:
    app = loaded(family, backend)
    modulus = WINDOW if family == "mistral" else 128
    scratch = modulus
    long = torch.arange(30).expand(2, 30)
    mask = (torch.arange(30) < torch.tensor([[30], [5]])).long()
    got = places_written(app, long, attention_mask=mask, seq_ids=torch.tensor([2, 1]))
    tokens = {(2, position % modulus) for position in range(30)} | {(1, i) for i in range(5)}
    # Padding: at the end of both rows, and the graph's third row, which names cache row 0.
    assert got == tokens | {(row, scratch) for row in range(3)}
    got = places_written(
        app, torch.tensor([[7]]), position_ids=torch.tensor([[30]]), seq_ids=torch.tensor([1])
    )
    assert got == {(1, 30 % modulus), (0, scratch), (2, scratch)}


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", MODELS)
def test_compiled_and_eager_steps_leave_the_same_caches(
    loaded: Callable[..., NeuronBaseForCausalLM], family: str
) -> None:
    states = []
    for backend in ("eager", "cpu"):
        app = loaded(family, backend)
        app.reset()
        app(torch.arange(20)[None] % 97)
        app(torch.tensor([[3]]), position_ids=torch.tensor([[20]]))
        states.append([c[0, :, :20] for rank in app.runner.executables for c in rank.caches])
    for eager, compiled in zip(*states, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=CACHE_FP32, atol=CACHE_FP32)
        assert float(eager.abs().max()) > 100 * CACHE_FP32


# Graphs that only some configs have.

PIECES = {"windowed_context_encoding_size": 8}
PAGED = {"is_block_kv_layout": True, "pa_block_size": 4}
OTHERS = {
    "extend": (Phase.EXTEND, PIECES),
    "paged prefill": (Phase.PREFILL, PAGED),
    "paged decode": (Phase.DECODE, PAGED),
    "paged extend": (Phase.EXTEND, {**PAGED, **PIECES}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_other_graphs_keep_every_rule(family: str, name: str, folders: dict[str, Path]) -> None:
    phase, options = OTHERS[name]
    program = export(folders[family], phase, tp_degree=2, **options)
    check_state(program, CACHES)
    check_dtypes(program)
    assert collectives(program) == collectives_of_step(family, LAYERS)
    assert find_divergences(program) == []


IN_BLOCKS = {"blockwise_matmul_config": {"block_size": 2}}
EXPERTS = {
    "blocks": (Phase.PREFILL, {**IN_BLOCKS, "moe_ep_degree": 2}),
    "capacity": (Phase.PREFILL, {"capacity_factor": 1.0, "moe_ep_degree": 2}),
    "one row": (Phase.DECODE, {"batch_size": 1, "moe_ep_degree": 2}),
    "hybrid": (
        Phase.DECODE,
        {"hybrid_sharding_config": {"moe_cte_tp_degree": 2, "moe_tkg_ep_degree": 2}},
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("family", [pytest.param("qwen3_moe", marks=pytest.mark.slow), "gpt_oss"])
def test_experts_keep_every_rule(family: str, name: str, folders: dict[str, Path]) -> None:
    """Ranks have different experts, and one program."""
    phase, options = EXPERTS[name]
    programs = [export(folders[family], phase, rank=r, tp_degree=2, **options) for r in range(2)]
    assert programs[0].graph_module.code == programs[1].graph_module.code
    check_state(programs[0], CACHES)
    check_dtypes(programs[0])
    check_functional(programs[0], CACHES)
    assert collectives(programs[0]) == collectives_of_step(family, LAYERS)
    assert find_divergences(programs[0]) == []


def test_a_float8_cache_is_the_only_other_dtype(folders: dict[str, Path]) -> None:
    program = export(folders["llama"], Phase.DECODE, kv_cache_quant=True)
    check_state(program, CACHES)
    held = {name: tensor.dtype for name, tensor in placeholders(program).items()}
    assert {held[name] for name in CACHES} == {torch.float8_e4m3fn}
    assert {held[name] for name in held.keys() - CACHES} == {torch.float32, torch.int32}
