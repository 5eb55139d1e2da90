"""What the compiler and the runtime are told, against values written out by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from neuron.nxd_double import Double
from nxdi.runtime.backends.neuron.flags import (
    CompileOptions,
    Role,
    compile_env,
    compiler_args,
    node_env,
    runtime_env,
)
from tiny_models import make_app, save_tiny, tiny_hf_model

TABLE = Path(__file__).with_name("compiler_args.txt")
OPTIONS: dict[str, dict[str, Any]] = {
    "-": {},
    "tiling": {"tiling_factor": 3},
    "spill": {"spills_by_dge": True},
    "page": {"scratchpad_page_mib": 1024},
    "order": {"dma_order": "abc"},
    "target": {"target": "trn2"},
    "notify": {"notifies_completion": True},
}
LENGTHS = [("1024", "2048"), ("32768", "65536"), ("65536", "131072"), ("1024", "131072")]
MODELS = {"dense": LENGTHS, "moe": LENGTHS[::2], "moe ep": LENGTHS[::2]}

Row = tuple[str, ...]


def table() -> list[Row]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" | ")) for line in lines if not line.startswith("#")]


def options_of(size: str, prompt: str, sequence: str, model: str, more: str) -> CompileOptions:
    chosen: dict[str, Any] = {}
    for name in more.split():
        chosen |= OPTIONS[name]
    kinds = model.split()
    return CompileOptions(
        logical_size=int(size),
        prompt_len=int(prompt),
        seq_len=int(sequence),
        is_moe="moe" in kinds,
        is_expert_parallel="ep" in kinds,
        is_fp8="fp8" in kinds,
        **chosen,
    )


@pytest.mark.parametrize("row", table(), ids=lambda row: " ".join(row[:-1]))
def test_compiler_args(row: Row) -> None:
    role, *options, expected = row
    assert compiler_args(Role(role), options_of(*options)) == expected


def test_the_table_is_complete() -> None:
    written = {row[:-1] for row in table()}
    assert len(written) == len(table())
    for role, size, (model, lengths), fp8 in product(Role, "12", MODELS.items(), ("", " fp8")):
        for length in lengths:
            assert (role.value, size, *length, model + fp8, "-") in written
    all_options = " ".join(name for name in OPTIONS if name != "-")
    for role, model in product((Role.CONTEXT_ENCODING, Role.TOKEN_GENERATION), ("dense", "moe")):
        for more in [*OPTIONS, all_options]:
            assert (role.value, "1", *LENGTHS[0], model, more) in written


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("-O1 --model-type=transformer", "-O1 --model-type=transformer --lnc=2"),
        ("-O1 --lnc=1", "-O1 --lnc=1"),
        ("-O1 --lnc 1", "-O1 --lnc 1"),
        ("--logical-nc-config=1 -O3", "--logical-nc-config=1 -O3"),
    ],
)
def test_own_arguments(own: str, expected: str) -> None:
    assert (
        compiler_args(Role.VISION, CompileOptions(logical_size=2, target="trn2"), own) == expected
    )


def test_compile_env() -> None:
    assert compile_env("trn2") == {
        "DISABLE_NUMERIC_CC_TOKEN": "1",
        "NEURON_PLATFORM_TARGET_OVERRIDE": "trn2",
    }


LONG = {"NEURON_RT_EXEC_TIMEOUT": "600", "NEURON_RT_DBG_SCRATCHPAD_ON_SINGLE_CORE": "1"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CompileOptions(), {"NEURON_LOGICAL_NC_CONFIG": "1"}),
        (CompileOptions(logical_size=2), {"NEURON_LOGICAL_NC_CONFIG": "2"}),
        (CompileOptions(prompt_len=32767), {"NEURON_LOGICAL_NC_CONFIG": "1"}),
        (CompileOptions(prompt_len=32768), {"NEURON_LOGICAL_NC_CONFIG": "1", **LONG}),
        (
            CompileOptions(scratchpad_page_mib=512),
            {"NEURON_LOGICAL_NC_CONFIG": "1", "NEURON_SCRATCHPAD_PAGE_SIZE": "512"},
        ),
        (
            CompileOptions(logical_size=2, prompt_len=65536, scratchpad_page_mib=1024),
            {"NEURON_LOGICAL_NC_CONFIG": "2", **LONG, "NEURON_SCRATCHPAD_PAGE_SIZE": "1024"},
        ),
    ],
)
def test_runtime_env(options: CompileOptions, expected: dict[str, str]) -> None:
    assert runtime_env(options) == expected


def test_node_env() -> None:
    assert node_env(32, "10.0.0.1:63423") == {
        "NEURON_RT_NUM_CORES": "32",
        "NEURON_RT_ROOT_COMM_ID": "10.0.0.1:63423",
        "FI_PROVIDER": "efa",
        "FI_EFA_USE_DEVICE_RDMA": "1",
        "FI_EFA_FORK_SAFE": "1",
    }


def test_options_of_a_config_reach_the_compiler(sdk: Double, tmp_path: Path) -> None:
    app = make_app(
        save_tiny(tiny_hf_model("llama"), tmp_path / "llama"),
        backend="neuron",
        target="trn2",
        logical_nc_config=1,
        seq_len=32,
        max_context_length=16,
        cc_pipeline_tiling_factor=3,
        enable_spill_reload_dge=True,
        scratchpad_page_size=512,
        dma_order_config="abc",
        enable_output_completion_notifications=True,
    )
    app.compile(tmp_path / "artifact", progress=False)
    assert sdk.args == {
        "context_encoding_model_b1_s16": (
            "--auto-cast=none --model-type=transformer --tensorizer-options="
            "'--enable-ccop-compute-overlap --cc-pipeline-tiling-factor=3 --vectorize-strided-dma'"
            " --lnc=1 -O1 --internal-enable-dge-levels spill_reload"
            " --internal-hlo2tensorizer-options='--modular-flow-mac-threshold=10 --verify-hlo=true'"
            " --hbm-scratchpad-page-size=512 --internal-dma-order-constraints=abc --target trn2"
            " --internal-backend-options='--enable-output-completion-notifications'"
        ),
        "token_generation_model_b1_s32": (
            "--auto-cast=none --model-type=transformer --tensorizer-options="
            "'--enable-ccop-compute-overlap --cc-pipeline-tiling-factor=1 --vectorize-strided-dma'"
            " --lnc=1 -O2 --internal-enable-dge-levels spill_reload"
            " --internal-hlo2tensorizer-options='--verify-hlo=true'"
            " --hbm-scratchpad-page-size=512 --internal-dma-order-constraints=abc --target trn2"
            " --internal-backend-options='--enable-output-completion-notifications'"
        ),
    }
