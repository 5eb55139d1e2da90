"""What the Neuron compiler and runtime are told: pure functions of the configuration.

Source: the defaults of NxD Inference 0.9 to 0.10, and the references of neuronx-cc and the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nxdi.config.neuron import LONG_CONTEXT_LEN

_NO_STRIDED_DMA_LEN = 128 * 1024  # tokens; beyond, strided transfers spill on two cores per rank


class Role(str, Enum):
    """What a graph is for, as far as flags differ: its tag."""

    CONTEXT_ENCODING = "context_encoding_model"
    TOKEN_GENERATION = "token_generation_model"
    SPECULATION = "speculation_model"
    MEDUSA = "medusa_speculation_model"
    FUSED_SPECULATION = "fused_speculation_model"
    VISION = "vision_encoder_model"


_WIDE = (Role.CONTEXT_ENCODING, Role.VISION)  # many tokens at once: bound by arithmetic
_NARROW = (Role.TOKEN_GENERATION, Role.FUSED_SPECULATION)


@dataclass(frozen=True)
class CompileOptions:
    """What flags depend on besides the role. prompt_len, seq_len: the longest, in tokens."""

    logical_size: int = 1
    prompt_len: int = 0
    seq_len: int = 0
    tiling_factor: int = 2
    is_moe: bool = False
    is_expert_parallel: bool = False
    is_fp8: bool = False
    target: str | None = None
    scratchpad_page_mib: int | None = None
    spills_by_dge: bool = False
    dma_order: str | None = None
    notifies_completion: bool = False

    @property
    def is_long(self) -> bool:
        return self.prompt_len >= LONG_CONTEXT_LEN


def compiler_args(role: Role, options: CompileOptions, own: str | None = None) -> str:
    """The arguments of neuronx-cc for one graph.

    own: a model's own arguments, which are told the cores per rank and left alone otherwise.
    """
    if own is not None:
        has_size = "--lnc" in own or "--logical-nc-config" in own
        return own if has_size else f"{own} --lnc={options.logical_size}"
    args = _moe_args(role, options) if options.is_moe else _dense_args(role, options)
    if options.scratchpad_page_mib is not None:
        args.append(f"--hbm-scratchpad-page-size={options.scratchpad_page_mib}")
    if options.dma_order is not None:
        args.append(f"--internal-dma-order-constraints={options.dma_order}")
    if options.target is not None:
        args.append(f"--target {options.target}")
    if options.notifies_completion:
        args.append("--internal-backend-options='--enable-output-completion-notifications'")
    return " ".join(args)


def _dense_args(role: Role, options: CompileOptions) -> list[str]:
    is_context = role is Role.CONTEXT_ENCODING
    spills = is_context and options.logical_size == 2 and options.seq_len >= _NO_STRIDED_DMA_LEN
    tensorizer = [
        "--enable-ccop-compute-overlap",
        f"--cc-pipeline-tiling-factor={1 if role in _NARROW else options.tiling_factor}",
        *([] if spills else ["--vectorize-strided-dma"]),
    ]
    long_context = ["--internal-disable-fma-on-ios", "--disable-mixed-precision-accumulation"]
    return [
        "--auto-cast=none",
        "--model-type=transformer",
        *(long_context if options.is_long else []),
        f"--tensorizer-options='{' '.join(tensorizer)}'",
        f"--lnc={options.logical_size}",
        "-O1" if role in _WIDE else "-O2",
        *(["--internal-enable-dge-levels spill_reload"] if options.spills_by_dge else []),
        _hlo_options(["--modular-flow-mac-threshold=10"] if role in _WIDE else [], options),
    ]


def _moe_args(role: Role, options: CompileOptions) -> list[str]:
    is_spread_decode = role is Role.TOKEN_GENERATION and options.is_expert_parallel
    tiling = f"--cc-pipeline-tiling-factor={options.tiling_factor}"
    return [
        "--enable-saturate-infinity",
        "--enable-mixed-precision-accumulation",
        "--model-type=transformer",
        "-O3" if is_spread_decode else "-O1",
        f"--tensorizer-options='--enable-ccop-compute-overlap {tiling}'",
        f"--lnc={options.logical_size}",
        "--auto-cast=none",
        "--internal-enable-dge-levels vector_dynamic_offsets",
        _hlo_options([], options),
    ]


def _hlo_options(first: list[str], options: CompileOptions) -> str:
    fp8 = ["--experimental-unsafe-fp8e4m3fn-as-fp8e4m3"] if options.is_fp8 else []
    return f"--internal-hlo2tensorizer-options='{' '.join([*first, *fp8, '--verify-hlo=true'])}'"


def compile_env(target: str) -> dict[str, str]:
    """Environment of tracing and compiling: no token that orders collectives, and the target."""
    return {"DISABLE_NUMERIC_CC_TOKEN": "1", "NEURON_PLATFORM_TARGET_OVERRIDE": target}


def runtime_env(options: CompileOptions) -> dict[str, str]:
    """Environment of loading and running. The runtime must group cores as the compiler did."""
    env = {"NEURON_LOGICAL_NC_CONFIG": str(options.logical_size)}
    if options.is_long:
        env |= {"NEURON_RT_EXEC_TIMEOUT": "600", "NEURON_RT_DBG_SCRATCHPAD_ON_SINGLE_CORE": "1"}
    if options.scratchpad_page_mib is not None:
        env["NEURON_SCRATCHPAD_PAGE_SIZE"] = str(options.scratchpad_page_mib)
    return env


def node_env(num_ranks: int, root: str) -> dict[str, str]:
    """Environment of one node of several: its own ranks, and how they reach the others over EFA.

    root: "host:port" of the first node, where all meet.
    """
    return {
        "NEURON_RT_NUM_CORES": str(num_ranks),
        "NEURON_RT_ROOT_COMM_ID": root,
        "FI_PROVIDER": "efa",
        "FI_EFA_USE_DEVICE_RDMA": "1",
        "FI_EFA_FORK_SAFE": "1",
    }
