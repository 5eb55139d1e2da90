"""A config that is written as JSON and read again is equal to itself."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from nxdi.config import InferenceConfig, NeuronConfig, OnDeviceSamplingConfig

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).map("model_{}".format)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
        | st.dictionaries(names, inner, max_size=3).map(lambda d: SimpleNamespace(**d))
    ),
    max_leaves=8,
)
samplings = st.builds(
    OnDeviceSamplingConfig,
    do_sample=st.booleans(),
    top_k=st.integers(-1, 500),
    top_p=st.floats(0, 1, exclude_min=True),
    temperature=st.floats(0, 10),
    deterministic=st.booleans(),
)


@st.composite
def neuron_configs(draw: st.DrawFn) -> NeuronConfig:
    max_length = draw(st.integers(2, 512))
    max_context_length = draw(st.integers(1, max_length))
    ladder = st.sets(st.integers(1, max_context_length), min_size=1, max_size=4).map(sorted)
    batch_size = draw(st.integers(1, 8))
    return NeuronConfig(
        batch_size=batch_size,
        ctx_batch_size=draw(st.integers(1, batch_size)),
        seq_len=max_length,
        max_context_length=max_context_length,
        enable_bucketing=True,
        context_encoding_buckets=draw(st.none() | ladder),
        token_generation_buckets=draw(st.none() | ladder),
        torch_dtype=draw(st.sampled_from([None, "float32", "bfloat16", "float16"])),
        on_device_sampling_config=draw(st.none() | samplings),
        tp_degree=draw(st.integers(1, 8)),
        padding_side=draw(st.sampled_from(["left", "right"])),
        on_cpu=draw(st.booleans()),
        fused_qkv=draw(st.booleans()),
    )


@given(neuron_configs(), st.dictionaries(names, values, max_size=5))
def test_json_round_trip(neuron_config: NeuronConfig, attributes: dict[str, object]) -> None:
    config = InferenceConfig(neuron_config, **attributes)
    again = InferenceConfig.from_json_string(config.to_json_string())
    assert again == config
    assert again.neuron_config == neuron_config
    assert {name: getattr(again, name) for name in attributes} == attributes
    assert again.to_json_string() == config.to_json_string()
