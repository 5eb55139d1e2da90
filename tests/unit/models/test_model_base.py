from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.graph.plan import GraphSpec, plan_graphs
from nxdi.models.llama.modeling_llama import NeuronLlamaModel
from nxdi.models.mistral.modeling_mistral import NeuronMistralModel
from nxdi.models.model_base import NeuronBaseModel
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.types import Phase
from tiny_modules import drawn, rank_modules, tiny_config

IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 0]], dtype=torch.int32)
POSITIONS = torch.tensor([[0, 1, 2, 3], [0, 1, 2, -1]], dtype=torch.int32)


def config(**options: Any) -> InferenceConfig:
    return tiny_config({"num_hidden_layers": 2}, batch_size=2, seq_len=4, **options)


def filled_ranks(cls: type[NeuronBaseModel], tp: int, **options: Any) -> list[NeuronBaseModel]:
    """The model of each rank, with pieces of the same weights."""

    def make() -> NeuronBaseModel:
        return cls(config(tp_degree=tp, **options))

    full = {
        name: 0.5 * drawn(*tensor.shape, seed=len(name))
        for name, tensor in cls(config()).state_dict().items()
    }
    return rank_modules(make, tp, full)


def step(model: NeuronBaseModel) -> Tensor:
    """Logits of one prefill."""
    (spec,) = plan_graphs(model.neuron_config).of(Phase.PREFILL)
    rows = torch.arange(2, dtype=torch.int32)
    inputs = {"input_ids": IDS, "position_ids": POSITIONS, "seq_ids": rows}
    caches = [torch.zeros(shape) for shape in model.cache_shapes()]
    with torch.no_grad():
        outputs, _ = model.step(spec, inputs, caches)
    return outputs["logits"]


class OwnForward(NeuronLlamaModel):
    """Hands everything to the base, by name."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        return super().forward(input_ids, **kwargs)


class OwnEmbeddings(NeuronLlamaModel):
    """Hands embeddings to the base, as the embedding leaves them."""

    def get_model_output(self, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        embeds = self.embed_tokens(input_ids)
        kwargs["inputs_embeds"] = embeds
        return super().get_model_output(input_ids, *args, **kwargs)


class OwnLoop(NeuronLlamaModel):
    """Calls the layers itself and records what it is told of the step."""

    def get_model_output(self, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        x = self.process_sequence_parallel_hidden_states(self.embed_tokens(input_ids), 4)
        past = self.kv_mgr.get_cache(seq_len=self.n_positions)
        assert [len(pair) for pair in past] == [2, 2]
        for index, layer in enumerate(self.layers):
            x = layer(x, ctx=self.running_step.at(index))
        return self.norm(x), self.kv_mgr.update_cache(seq_ids=kwargs["seq_ids"])


OWN = (OwnForward, OwnEmbeddings, OwnLoop)


@pytest.mark.parametrize("cls", OWN)
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("tp", [1, 2])
def test_nxdis_hooks_change_nothing_by_themselves(
    cls: type[NeuronBaseModel], sequence_parallel: bool, tp: int
) -> None:
    expected = step(filled_ranks(NeuronLlamaModel, 1)[0])
    models = filled_ranks(cls, tp, sequence_parallel_enabled=sequence_parallel)
    for got in SimulatedWorld(tp).run([lambda m=model: step(m) for model in models]):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("cls", OWN)
def test_a_model_with_hooks_of_its_own_is_one_graph(cls: type[NeuronBaseModel]) -> None:
    assert NeuronLlamaModel(config()).composes
    assert not cls(config()).composes


def test_a_step_leaves_nothing_behind() -> None:
    model = filled_ranks(OwnForward, 1)[0]
    step(model)
    assert not hasattr(model, "running_step")
    with pytest.raises(AttributeError):
        model(IDS)


def test_the_hook_at_the_end_of_building() -> None:
    class Hooked(NeuronLlamaModel):
        def init_inference_optimization(self, config: InferenceConfig) -> None:
            self.seen = (config, len(self.layers))

    made = config()
    assert Hooked(made).seen == (made, 2)


def test_frequencies_are_those_of_the_finished_subclass() -> None:
    class Doubled(RotaryEmbedding):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            self.factor_of_mine = 2.0  # set after the base's constructor, as strangers do

        def get_inv_freqs(self, device: Any = None) -> Tensor:
            return self.factor_of_mine * super().get_inv_freqs()

    class Model(NeuronLlamaModel):
        def init_model(self, config: InferenceConfig) -> None:
            super().init_model(config)
            for layer in self.layers:
                layer.self_attn.rotary_emb = Doubled(4)

    rope = Model(config()).layers[0].self_attn.rotary_emb
    assert torch.equal(rope.inv_freq, 2 * RotaryEmbedding(4).get_inv_freqs())


class Windowed(NeuronMistralModel):
    """Says how long its windows are, as models written for NxDI do."""

    def setup_attr_for_model(self, config: InferenceConfig) -> None:
        super().setup_attr_for_model(config)
        self.sliding_window = config.window_of_model


def windowed(of_model: int, of_attention: int | None, **options: Any) -> InferenceConfig:
    windows = {"window_of_model": of_model, "sliding_window": of_attention}
    return tiny_config({"num_hidden_layers": 2, **windows}, batch_size=2, seq_len=4, **options)


def test_a_window_that_attention_does_not_have() -> None:
    with pytest.raises(ConfigError, match="sets sliding_window=3, but none of its attention"):
        Windowed(windowed(3, None))
    Windowed(windowed(4, None))  # as long as any sequence
    Windowed(windowed(3, 3))
    Windowed(windowed(3, 3, is_block_kv_layout=True, pa_block_size=2))  # all blocks are kept


@pytest.mark.parametrize(("enabled", "dimension"), [(False, None), (True, 1)])
def test_what_models_read_while_they_are_built(enabled: bool, dimension: int | None) -> None:
    class Reads(NeuronLlamaModel):
        def init_model(self, config: InferenceConfig) -> None:
            self.seen = (self.sequence_parallel_enabled, self.sequence_dimension)
            super().init_model(config)

    with tensor_parallel(2):
        model = Reads(config(tp_degree=2, sequence_parallel_enabled=enabled))
    assert model.seen == (enabled, dimension)


def test_the_bucket_of_a_step() -> None:
    seen: list[int] = []

    class Reads(NeuronLlamaModel):
        def get_model_output(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.n_positions)
            return super().get_model_output(*args, **kwargs)

    model = filled_ranks(Reads, 1)[0]
    specs: list[GraphSpec] = plan_graphs(model.neuron_config).of(Phase.PREFILL)
    step(model)
    assert seen == [specs[0].length]


def test_a_layer_that_cannot_be_called_is_an_error_when_the_model_is_built() -> None:
    class Alien(nn.Module):
        def forward(self, x: Tensor, alibi: Tensor) -> Tensor:
            return x

    class Model(NeuronLlamaModel):
        def init_model(self, config: InferenceConfig) -> None:
            super().init_model(config)
            self.layers.append(Alien())

    with pytest.raises(ConfigError, match=r"Alien\.forward requires alibi"):
        Model(config())
