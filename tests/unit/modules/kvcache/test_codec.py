"""Float8 caches: what is stored, what is read, and where the scales come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi.config import KVQuantizationConfig, NeuronConfig
from nxdi.errors import ConfigError, UnsupportedError, WeightError
from nxdi.modules.kvcache.codec import Float8KV, PlainKV, make_codec
from nxdi.modules.kvcache.spec import Attended, Stored
from nxdi.parallel_layers.sharding import plan_heads
from tiny_models import load_app, save_tiny, tiny_hf_model

LAYOUT = plan_heads(4, 2, 1)
X = torch.tensor([0.0, 0.3, -1.0, 448.0, 1e6]).expand(1, 2, 1, 5)


def codec(**options: object) -> Float8KV:
    neuron = NeuronConfig(kv_cache_quant=True, kv_quant_config=dict(options))
    made = make_codec(neuron, LAYOUT, (5, 5))
    assert isinstance(made, Float8KV)
    return made


def test_without_the_option_nothing_changes() -> None:
    plain = make_codec(NeuronConfig(), LAYOUT, (5, 5))
    assert isinstance(plain, PlainKV)
    assert plain.encode(X, X) == (X, X)


def test_the_switch_alone_is_enough() -> None:
    config = NeuronConfig(kv_cache_quant=True)
    assert config.kv_quant_config == KVQuantizationConfig()
    assert config.cache_dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("backend", "dtype", "largest"),
    [
        ("cpu", torch.float8_e4m3fn, 448.0),
        ("neuron", torch.float8_e4m3fn, 240.0),
        ("cpu", torch.float8_e5m2, 57344.0),
        ("neuron", torch.float8_e5m2, 57344.0),
    ],
)
def test_large_numbers_are_clamped(backend: str, dtype: torch.dtype, largest: float) -> None:
    neuron = NeuronConfig(
        backend=backend, kv_cache_quant=True, kv_quant_config={"quant_dtype": dtype}
    )
    made = make_codec(neuron, LAYOUT, (5, 5))
    k, _ = made.encode(X, X)
    assert k.dtype == dtype
    assert k[0, 0, 0].float()[-1] == largest
    read = made.decode(Attended(k, k, torch.zeros(1, 1)))
    assert read.keys.dtype == neuron.compute_dtype
    assert torch.equal(read.keys[0, 0, 0, :3].float(), X[0, 0, 0, :3].to(dtype).float())


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("per_tensor_symmetric", (1,)),
        ("per_head_symmetric", (2, 1, 1)),
        ("per_channel_symmetric", (1, 1, 5)),
    ],
)
def test_static_scales(method: str, shape: tuple[int, ...]) -> None:
    made = codec(direct_cast=False, k_quant_method=method, v_quant_method=method)
    assert made.k_scales is not None
    assert made.v_scales is not None
    assert made.k_scales.shape == shape
    made.k_scales.data.fill_(4.0)
    made.v_scales.data.fill_(0.5)
    x = torch.full((1, 2, 1, 5), 3.0)
    k, v = made.encode(x, x)
    assert (float(k[0, 0, 0, 0]), float(v[0, 0, 0, 0])) == (0.75, 6.0)
    read = made.decode(Attended(k, v, torch.zeros(1, 1)))
    assert torch.equal(read.keys, x)
    assert torch.equal(read.values, x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k_quant_method": "per_token"}, ConfigError, "k_quant_method='per_token' is not one of"),
        ({"quant_dtype": "int8"}, UnsupportedError, r"use torch\.float8_e4m3fn"),
        ({"scale": 1}, ConfigError, "has no option 'scale'"),
    ],
)
def test_what_is_not_known(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        KVQuantizationConfig(**options)


def test_a_config_without_the_switch() -> None:
    with pytest.raises(ConfigError, match="set kv_cache_quant=True as well"):
        NeuronConfig(kv_quant_config={})


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_scales_of_a_checkpoint(tp_degree: int, tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path / "model")
    file = folder / "model.safetensors"
    options: dict[str, object] = {"kv_cache_quant": True}
    options["kv_quant_config"] = {"direct_cast": False, "k_quant_method": "per_head_symmetric"}
    limits = {"seq_len": 32, "batch_size": 1, "tp_degree": tp_degree}
    ids = torch.arange(1, 20)[None]
    plain = load_app(folder, **limits, kv_cache_quant=True)(ids)
    with pytest.raises(WeightError, match=r"k_scales"):
        load_app(folder, **limits, **options)
    scales = {}
    for layer in range(2):
        path = f"model.layers.{layer}.self_attn."
        scales[f"{path}k_scales"] = torch.tensor([0.25, 0.5]).view(2, 1, 1)
        scales[f"{path}v_scales"] = torch.tensor([0.125])
    save_file({**load_file(file), **scales}, file, metadata={"format": "pt"})
    scaled = load_app(folder, **limits, **options)
    found = scaled(ids)
    assert found.logits is not None
    assert plain.logits is not None
    # Powers of two change what underflows and overflows, not the rounding of ordinary numbers.
    assert torch.allclose(found.logits, plain.logits, atol=0.5)
    assert not torch.equal(found.logits, plain.logits)


@pytest.mark.parametrize("method", ["per_tensor_symmetric", "per_head_symmetric"])
def test_what_is_stored_has_a_scale_per_head(method: str) -> None:
    made = codec(k_quant_method=method, v_quant_method="per_tensor_symmetric", direct_cast=False)
    assert made.k_scales is not None
    assert made.v_scales is not None
    made.k_scales.data.copy_(torch.arange(1, 1 + made.k_scales.numel()).view_as(made.k_scales))
    made.v_scales.data.fill_(3)
    k, v = made.encode(X, X)
    stored = made.decode(Attended(k, v, torch.zeros(1, 1))).stored
    assert stored is not None
    assert stored.k is k
    assert stored.v is v
    assert stored.scales is not None
    assert stored.scales.tolist() == [[1, 2 if method.startswith("per_head") else 1], [3, 3]]


def test_scales_of_channels_are_none_of_heads() -> None:
    made = codec(k_quant_method="per_channel_symmetric", direct_cast=False)
    k, v = made.encode(X, X)
    assert made.decode(Attended(k, v, torch.zeros(1, 1))).stored is None


def test_without_scales_blocks_stay_as_they_are() -> None:
    made, blocks = codec(direct_cast=True), torch.zeros(1, 2, dtype=torch.int32)
    k, v = made.encode(X, X)
    given = Attended(k, v, torch.zeros(1, 1), Stored(k, v, blocks))
    assert made.decode(given).stored == Stored(k, v, blocks)
