"""NeuronConfig: everything about how a model is run, under NxDI's option names."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from nxdi.config.chunked_prefill import ChunkedPrefillConfig
from nxdi.config.keywords import KeywordConfig, derived, to_torch_dtype
from nxdi.config.kv_quantization import KVQuantizationConfig
from nxdi.config.legacy import check_options
from nxdi.config.sampling import OnDeviceSamplingConfig
from nxdi.config.token_tree import (
    DynamicShape,
    TreeShape,
    parse_medusa_tree,
    parse_token_tree,
)
from nxdi.config.validate import validate
from nxdi.errors import ConfigError
from nxdi.types import Phase

LNC2_TARGETS = ("trn2", "trn3")  # two physical cores act as one rank there by default
LONG_CONTEXT_LEN = 32768  # tokens; from here NxDI enlarges the scratchpad page


@dataclass(init=False, repr=False, eq=False)
class NeuronConfig(KeywordConfig):
    """How a model is run: lengths, batch sizes, buckets, dtypes, parallel widths, features.

    Keyword-only and closed: an unknown keyword is an error. `config/legacy.py` says of each option
    whether it is supported, has no effect here, or is refused. Derived defaults are computed once.
    A subclass may set attributes after `super().__init__(**kwargs)`; to take keywords of its own it
    declares them as fields under `@dataclass(init=False, repr=False, eq=False)`.

    Raises: ConfigError for an unknown, ill-typed or contradictory option; UnsupportedError for an
    option that is known and refused.
    """

    # Where it runs. NxDI has no such option.
    backend: str = "auto"  # auto | cpu | eager | neuron | neuron-dynamo
    on_cpu: bool = False  # NxDI's spelling of backend="cpu"
    strict_kernels: bool = False  # an error where a layer has no kernel; not NxDI's

    # Lengths, in tokens.
    seq_len: int = 128
    max_context_length: int = derived(lambda c: c.seq_len)  # longest prompt
    max_length: int = derived(lambda c: c.seq_len)  # prompt and new tokens together
    max_new_tokens: int | None = derived(lambda c: c.max_length - c.max_context_length or None)
    n_active_tokens: int = derived(lambda c: c.seq_len)
    n_positions: int = derived(lambda c: c.seq_len)
    allow_input_truncation: bool = False
    padding_side: str = "right"  # right | left

    # Batches, in rows.
    batch_size: int = 1
    max_batch_size: int = derived(lambda c: c.batch_size)
    ctx_batch_size: int = derived(lambda c: c.batch_size)
    tkg_batch_size: int = derived(lambda c: c.batch_size)
    spec_batch_size: int = derived(lambda c: c.batch_size)
    kv_cache_batch_size: int = derived(lambda c: c.max_batch_size)
    kv_cache_padding_size: int = 0
    is_continuous_batching: bool = False
    apply_seq_ids_mask: bool = False

    # Buckets.
    enable_bucketing: bool = False
    buckets: list[int] = derived(lambda c: [c.seq_len])  # noqa: RUF009 - only a declaration
    context_encoding_buckets: list[int] | None = None
    token_generation_buckets: list[int] | None = None
    token_generation_batches: list[int] | None = None
    prefix_buckets: list[int] | None = None  # cached tokens before a prompt; 0 is always one
    bucket_n_active_tokens: bool = False

    # Dtypes.
    torch_dtype: torch.dtype = torch.bfloat16
    overrides_torch_dtype: bool = True  # False: load_pretrained_config takes the checkpoint's
    cast_type: str = "config"
    rpl_reduce_dtype: torch.dtype | None = None
    attention_dtype: torch.dtype | None = None

    # Outputs and sampling.
    output_logits: bool = False
    on_device_sampling_config: OnDeviceSamplingConfig | None = None
    disable_argmax_kernel: bool = False
    async_mode: bool = False

    # Parallel widths and ranks.
    tp_degree: int = 1
    cp_degree: int = 1
    mlp_cp_degree: int = 1
    attention_dp_degree: int = 1
    pp_degree: int = 1
    ep_degree: int = 1
    world_size: int = derived(lambda c: c.tp_degree * c.pp_degree * c.ep_degree)
    start_rank_id: int = 0
    local_ranks_size: int = derived(lambda c: c.world_size)
    sequence_parallel_enabled: bool = False
    vocab_parallel: bool = False
    enable_ve_data_parallel: bool = False
    weight_gather_seq_len_threshold: int = 32768
    ep_dispatch_cc_option: str = "AR_AG"

    # Weights and artefacts.
    save_sharded_checkpoint: bool = False
    skip_sharding: bool = False
    skip_warmup: bool = False
    padded_hidden_size: int | None = None
    padded_intermediate_size: int | None = None

    # The model's attention.
    attn_cls: Any = "NeuronLlamaAttention"
    fused_qkv: bool = False
    qk_layernorm: bool = False
    pre_rope_rmsnorm: bool = False
    flash_decoding_enabled: bool = False
    windowed_context_encoding_size: int | None = None

    # Cache layout.
    is_block_kv_layout: bool = False
    pa_block_size: int = derived(lambda c: c.seq_len)
    kv_cache_memory_bytes: int | None = None  # per rank; not NxDI's. Decides pa_num_blocks
    pa_num_blocks: int = derived(  # 0: not known before the model is
        lambda c: (
            0
            if c.kv_cache_memory_bytes is not None
            else c.max_batch_size * -(-c.max_length // max(c.pa_block_size, 1))
        )
    )
    is_prefix_caching: bool = False
    chunked_prefill_config: Any = None  # a ChunkedPrefillConfig, or a dictionary of its options
    kv_cache_quant: bool = False
    kv_quant_config: Any = None  # a KVQuantizationConfig, or a dictionary of its options
    disable_kv_cache_tiling: bool = False
    k_cache_transposed: bool = False

    # Quantization.
    quantized: bool = False
    quantized_checkpoints_path: str | None = None
    quantization_type: str = "per_tensor_symmetric"
    quantization_dtype: str = "int8"
    quantization_block_size: Any = None
    quantization_block_axis: Any = None
    quantization_scale_dtype: str = "f32"
    is_mxfp4_compute: bool = False
    is_full_model_shuffled: bool = False
    modules_to_not_convert: list[str] | None = None
    draft_model_modules_to_not_convert: list[str] | None = None
    activation_quantization_type: str | None = None
    quantize_clamp_bound: float = float("inf")
    quantized_mlp_kernel_enabled: bool = False
    rmsnorm_quantize_kernel_enabled: bool = False

    # Speculation.
    speculation_length: int = 0
    enable_fused_speculation: bool = False
    enable_eagle_speculation: bool = False
    eagle_rolling_buffer_kernel_enabled: bool = False
    is_eagle3: bool = False
    is_eagle_draft: bool = False
    enable_eagle_draft_input_norm: bool = False
    token_tree_config: Any = None
    is_medusa: bool = False
    medusa_speculation_length: int = 0
    num_medusa_heads: int = 0
    medusa_heads_path: str | None = None
    medusa_tree: Any = None

    # Adapters and debugging.
    lora_config: Any = None
    tensor_capture_config: Any = None
    tensor_replacement_config: Any = None

    # Neuron kernels.
    attn_kernel_enabled: bool | None = None
    strided_context_parallel_kernel_enabled: bool = False
    qkv_kernel_enabled: bool = False
    qkv_nki_kernel_enabled: bool = False
    qkv_cte_nki_kernel_fuse_rope: bool = False
    qkv_kernel_nbsd_layout: bool = False
    qkv_kernel_fuse_residual_add: bool = False
    mlp_kernel_enabled: bool = False
    mlp_tkg_nki_kernel_enabled: bool = False
    mlp_kernel_fuse_residual_add: bool = False
    fused_rmsnorm_skip_gamma: bool = False
    out_proj_kernel_enabled: bool = False
    attn_tkg_nki_kernel_enabled: bool | None = None
    attn_tkg_builtin_kernel_enabled: bool = False
    attn_block_tkg_nki_kernel_enabled: bool | None = None
    attn_block_tkg_nki_kernel_cache_update: bool = False
    attn_block_tkg_nki_kernel_cascaded_attention: bool = False
    attn_block_tkg_nki_kernel_use_online_softmax: bool = True
    attn_block_tkg_nki_kernel_disable_gpsimd_sb2sb: bool = False
    attn_block_cte_nki_kernel_enabled: bool = False
    moe_fused_nki_kernel_enabled: bool | None = None
    router_topk_nki_kernel_enabled: bool | None = None
    expert_mlp_nki_kernel_enabled: bool | None = None
    shared_mlp_nki_kernel_enabled: bool | None = None

    # Neuron compiler and runtime.
    target: str | None = None
    logical_neuron_cores: int | None = None  # NxDI's older name of logical_nc_config
    logical_nc_config: int = derived(
        lambda c: c.logical_neuron_cores or (2 if c.target in LNC2_TARGETS else 1)
    )
    lm_head_pad: bool = derived(lambda c: c.logical_nc_config > 1)
    lm_head_pad_alignment_size: int = 1
    enable_cte_modular_flow: bool = False
    layer_boundary_markers: bool = False
    cc_pipeline_tiling_factor: int = 2
    seq_len_threshold_for_cc_tiling: int = 16384
    enable_spill_reload_dge: bool = False
    weights_to_skip_layout_optimization: list[str] = field(default_factory=list)
    dma_order_config: Any = None
    scratchpad_page_size: int | None = derived(
        lambda c: 1024 if c.max_context_length >= LONG_CONTEXT_LEN else None
    )
    enable_output_completion_notifications: bool = False
    disable_numeric_cc_token: bool = False
    switch_cc: bool = False

    def __init__(self, **options: Any) -> None:
        has_dtype = options.get("torch_dtype") is not None
        if not has_dtype:
            options.pop("torch_dtype", None)
        options.setdefault("overrides_torch_dtype", has_dtype)
        super().__init__(**options)
        if self.overrides_torch_dtype and not has_dtype:
            raise ConfigError("overrides_torch_dtype=True needs a torch_dtype; give one")
        for name in ("torch_dtype", "rpl_reduce_dtype", "attention_dtype"):
            if getattr(self, name) is not None:
                setattr(self, name, to_torch_dtype(getattr(self, name)))
        self.max_new_tokens = self.max_new_tokens or None
        if isinstance(self.on_device_sampling_config, dict):
            self.on_device_sampling_config = OnDeviceSamplingConfig(
                **self.on_device_sampling_config
            )
        if isinstance(self.chunked_prefill_config, dict):
            self.chunked_prefill_config = ChunkedPrefillConfig(**self.chunked_prefill_config)
        if self.kv_cache_quant and self.kv_quant_config is None:
            self.kv_quant_config = KVQuantizationConfig()
        elif isinstance(self.kv_quant_config, dict):
            self.kv_quant_config = KVQuantizationConfig(**self.kv_quant_config)
        if self.on_cpu and self.backend == "auto":
            self.backend = "cpu"
        check_options(self)
        validate(self)

    _phase = Phase.PREFILL  # of the modules that are built with it

    def for_phase(self, phase: Phase, backend: str) -> NeuronConfig:
        """The options as the modules of one phase on one backend see them.

        Sequence parallelism is for many tokens at once: decoding does without.
        """
        config = copy.copy(self)
        config.backend, config._phase = backend, phase
        if phase.is_decoding:
            config.sequence_parallel_enabled = False
        return config

    @property
    def is_prefill_stage(self) -> bool:
        """Whether modules built with it take many tokens per row; NxDI's name."""
        return not self._phase.is_decoding

    @property
    def phase(self) -> Phase:
        """The phase of the modules that are built with it."""
        return self._phase

    @property
    def returns_features(self) -> bool:
        """Whether graphs return activations for a draft head, or are those of one."""
        return self.enable_eagle_speculation or self.is_eagle_draft

    @property
    def num_retractable(self) -> int:
        """Tokens that one step may write and a later one replace by others."""
        return max(self.num_verified - 1, 0)

    @property
    def num_verified(self) -> int:
        """Tokens of a row that one verify step looks at, 0 where there is none."""
        return self.speculation_length or self.medusa_speculation_length

    @property
    def tree_shape(self) -> TreeShape | DynamicShape | None:
        """The tree of proposed tokens; None: they follow each other."""
        if self.medusa_tree is not None:
            return parse_medusa_tree(self.medusa_tree)
        return None if self.token_tree_config is None else parse_token_tree(self.token_tree_config)

    @property
    def verifies_trees(self) -> bool:
        """Whether verify graphs take trees of tokens; chains are trees as well."""
        return self.medusa_tree is not None or self.token_tree_config is not None

    @property
    def proposes_in_graph(self) -> bool:
        """Whether verify graphs make their own proposals, with a draft model in them."""
        return self.enable_fused_speculation

    @property
    def is_for_neuron(self) -> bool:
        """Whether a Neuron device is what the graphs are made for."""
        return self.backend.startswith("neuron")

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of arithmetic and caches: that of the weights on Neuron, else float32.

        On a CPU 16-bit weights stay 16-bit in memory; activations and caches are float32.
        """
        return self.torch_dtype if self.is_for_neuron else torch.float32

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are stored as."""
        if self.kv_quant_config is not None:
            dtype: torch.dtype = self.kv_quant_config.quant_dtype
            return dtype
        return self.compute_dtype

    @property
    def longest_prompt(self) -> int:
        """In tokens: with chunked_prefill_config, `max_context_length` is only that of a piece."""
        is_cut = self.chunked_prefill_config is not None
        return self.max_length if is_cut else self.max_context_length

    @property
    def extends_prompts(self) -> bool:
        """Whether there are graphs that add several tokens to a row with a past."""
        return (
            self.is_prefix_caching
            or self.chunked_prefill_config is not None
            or self.windowed_context_encoding_size is not None
        )

    @property
    def on_device_sampling(self) -> bool:
        """Whether the graph returns sampled tokens."""
        return self.on_device_sampling_config is not None
