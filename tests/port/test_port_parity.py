"""Models as their owners write them for NxD Inference, with two import roots renamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from golden.parity import NEW_TOKENS, Reference, check_all_buckets, check_generate, check_logits
from nxdi.config import OnDeviceSamplingConfig
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from port import gpt2_port, olmo2_port, opt_port, smollm3_port
from port.cases import BY_NAME, CASES

Get = Callable[[str], Reference]
Patch = pytest.MonkeyPatch

NAMES = tuple(BY_NAME)
TP_DEGREES = (1, 2, 4)
# Ports that read the option vocab_parallel.
VOCAB_PARALLEL = ("neox", "phi", "olmo2", "falcon")


@pytest.mark.parametrize("tp_degree", TP_DEGREES)
@pytest.mark.parametrize("name", NAMES)
def test_every_port_at_every_bucket_edge(name: str, tp_degree: int, reference_of: Get) -> None:
    reference = reference_of(name)
    app = BY_NAME[name].load_app(reference.folder, tp_degree=tp_degree)
    check_all_buckets(app, reference)


@pytest.mark.parametrize("tp_degree", [2, 4])
@pytest.mark.parametrize("name", [case.name for case in CASES if case.sequence_parallel])
def test_sequence_parallel(name: str, tp_degree: int, reference_of: Get) -> None:
    reference = reference_of(name)
    options = {"tp_degree": tp_degree, "sequence_parallel_enabled": True}
    app = BY_NAME[name].load_app(reference.folder, **options)
    check_generate(app, reference, [32, 17, 31], "left")


@pytest.mark.parametrize(
    "options",
    [
        {"moe_ep_degree": 2, "moe_tp_degree": 1},
        {"hybrid_sharding_config": {"moe_cte_tp_degree": 2, "moe_tkg_ep_degree": 2}},
        {"moe_fused_nki_kernel_enabled": True},
        {"capacity_factor": 100.0},
    ],
)
def test_a_mixture_of_experts_with_nxdis_options(
    options: dict[str, Any], reference_of: Get
) -> None:
    reference = reference_of("qwen3_moe")
    app = BY_NAME["qwen3_moe"].load_app(reference.folder, tp_degree=2, **options)
    check_generate(app, reference, [32, 17, 31], "left")


@pytest.mark.parametrize("name", VOCAB_PARALLEL)
def test_vocab_parallel(name: str, reference_of: Get) -> None:
    reference = reference_of(name)
    app = BY_NAME[name].load_app(reference.folder, tp_degree=2, vocab_parallel=True)
    check_generate(app, reference, [32, 17, 31], "left")


@pytest.mark.parametrize("tp_degree", TP_DEGREES)
def test_sampling_in_the_graph_over_a_vocabulary_in_pieces(
    tp_degree: int, reference_of: Get
) -> None:
    """The port leaves gather_output=False when tokens are sampled on the device."""
    reference = reference_of("phi")
    app = BY_NAME["phi"].load_app(
        reference.folder,
        tp_degree=tp_degree,
        on_device_sampling_config=OnDeviceSamplingConfig(top_k=1),
    )
    ids, mask = reference.batch([17, 1, 64], "left")
    out = HuggingFaceGenerationAdapter(app).generate(
        ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
    )
    for row, length in enumerate((17, 1, 64)):
        assert out[row, -NEW_TOKENS:].tolist() == reference.tokens[length].tolist()
    assert app(ids, attention_mask=mask).logits is None


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_a_loop_of_ones_own(tp_degree: int, reference_of: Get) -> None:
    """As the tests that come with such models: one prompt, position_ids, the last logits."""
    reference = reference_of("opt")
    model = BY_NAME["opt"].load_app(reference.folder, tp_degree=tp_degree)
    generated = reference.prompts[17][None]
    for step in range(NEW_TOKENS):
        length = generated.shape[1]
        if step == 0:
            outputs = model(generated, position_ids=torch.arange(length)[None])
        else:
            outputs = model(generated[:, -1:], position_ids=torch.tensor([[length - 1]]))
        logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
        check_logits(logits[0, -1], reference.logits[17][step])
        next_token = torch.argmax(logits[:, -1, :], dim=-1, keepdim=True)
        generated = torch.cat([generated, next_token], dim=-1)
    assert generated[0, -NEW_TOKENS:].tolist() == reference.tokens[17].tolist()


def test_a_loop_that_prefills_everything_again(reference_of: Get) -> None:
    reference = reference_of("stablelm")
    model = BY_NAME["stablelm"].load_app(reference.folder)
    generated = reference.prompts[31][None]
    for step in range(8):
        positions = torch.arange(generated.shape[1])[None]
        logits = model(input_ids=generated, position_ids=positions).logits
        check_logits(logits[0, -1], reference.logits[31][step])
        generated = torch.cat([generated, logits[:, -1].argmax(-1, keepdim=True)], dim=1)


def test_the_options_of_fused_kernels_change_nothing(reference_of: Get) -> None:
    """A layer that leaves its norms to the kernels gets them applied."""
    reference = reference_of("smollm3")
    options = {"qkv_kernel_enabled": True, "mlp_kernel_enabled": True}
    app = BY_NAME["smollm3"].load_app(reference.folder, tp_degree=2, **options)
    check_generate(app, reference, [32, 17, 31], "left")


def test_the_reference_model_of_a_port(reference_of: Get) -> None:
    for name in NAMES:
        folder = reference_of(name).folder
        model = BY_NAME[name].app_cls.load_hf_model(folder)
        assert type(model).__name__ == f"{BY_NAME[name].hf}{BY_NAME[name].head}"


# The checks above can fail: each of these faults, one per hook, makes them do so.


def output_hook_ignored(patch: Patch) -> None:
    patch.delattr(opt_port.NeuronOPTModel, "get_model_output")


def local_norm(patch: Patch) -> None:
    """Each rank normalises over its own heads."""
    patch.setattr(
        olmo2_port,
        "reduce_from_tensor_model_parallel_region",
        lambda x, process_group: 2 * x,
    )


def forward_ignored(patch: Patch) -> None:
    patch.delattr(gpt2_port.NeuronGPT2Model, "forward")


def rotary_everywhere(patch: Patch) -> None:
    patch.delattr(smollm3_port.NeuronSmolLM3Attention, "apply_rotary_embedding")


def multiplied_softmax_scale(patch: Patch) -> None:
    patch.setattr(
        NeuronAttentionBase, "_scale", lambda self, scale, softmax_scale: softmax_scale or scale
    )


@pytest.mark.parametrize(
    ("inject", "name"),
    [
        (output_hook_ignored, "opt"),
        (local_norm, "olmo2"),
        (forward_ignored, "gpt2"),
        (rotary_everywhere, "smollm3"),
        (multiplied_softmax_scale, "granite"),
    ],
)
def test_a_fault_is_noticed(
    inject: Callable[[Patch], None], name: str, reference_of: Get, monkeypatch: Patch
) -> None:
    reference = reference_of(name)
    inject(monkeypatch)
    app = BY_NAME[name].load_app(reference.folder, tp_degree=2)
    with pytest.raises(AssertionError):
        check_generate(app, reference, [32, 17, 31], "left")


# Compiled graphs.

ONE_GRAPH_EACH: dict[str, Any] = {
    "backend": "cpu",
    "seq_len": 64,
    "max_context_length": 32,
    "context_encoding_buckets": [32],
    "token_generation_buckets": [64],
}
# A step in pieces with tables that are plain tensors; one graph of a port with its own loop.
COMPILED = ["neox", "stablelm", "smollm3"]


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str, reference_of: Get) -> None:
    reference = reference_of(name)
    app = BY_NAME[name].load_app(reference.folder, **ONE_GRAPH_EACH)
    check_generate(app, reference, [32, 17, 1], "left")
