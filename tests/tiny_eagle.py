"""Tiny random EAGLE heads, and what they compute, by transformers' layers without a cache."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from nxdi.config import FusedSpecNeuronConfig, load_pretrained_config
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.registry import class_for_architecture, class_for_folder
from tiny_models import drawn_wide, loaded, make_config, save_tiny, tiny_hf_model

DRAFT_VOCAB_SIZE = 61
KINDS: dict[str, dict[str, Any]] = {"eagle": {}, "eagle3": {"is_eagle3": True}}


class PlainHead(nn.Module):
    """A head with random weights for a target, as published: EAGLE, or EAGLE-3.

    enable_eagle_draft_input_norm: of EAGLE, with a norm before its attention.
    num_tokens: that a head of EAGLE-3 knows, of all those of its target.
    """

    def __init__(
        self,
        target: LlamaForCausalLM,
        is_eagle3: bool = False,
        enable_eagle_draft_input_norm: bool = False,
        seed: int = 5,
        num_tokens: int = DRAFT_VOCAB_SIZE,
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.target, self.config, self.is_eagle3 = (target,), target.config, is_eagle3
        size, vocab = target.config.hidden_size, target.config.vocab_size
        layer = LlamaDecoderLayer(target.config, 0)
        layers = 3 if is_eagle3 else 2
        self.fc = nn.Linear(layers * size, size, bias=not is_eagle3)
        if is_eagle3:
            attention = layer.self_attn
            for name in ("q_proj", "k_proj", "v_proj"):
                rows = getattr(attention, name).out_features
                setattr(attention, name, nn.Linear(2 * size, rows, bias=False))
            layer.hidden_norm = nn.RMSNorm(size, target.config.rms_norm_eps)
            self.midlayer = layer
            self.norm = nn.RMSNorm(size, target.config.rms_norm_eps)
            self.lm_head = nn.Linear(size, num_tokens, bias=False)
            chosen = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
            chosen = chosen[:num_tokens].sort().values
            self.register_buffer("d2t", chosen - torch.arange(num_tokens))
        else:
            if not enable_eagle_draft_input_norm:
                layer.input_layernorm = nn.Identity()
            self.layers = nn.ModuleList([layer])
        drawn_wide(self, seed)  # type: ignore[arg-type]  # it asks for parameters only

    def features(self, tokens: list[int]) -> Tensor:
        """What the target returns of each token [n, F]."""
        model = self.target[0].model
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        if not self.is_eagle3:
            return states[-1][0]
        half = self.config.num_hidden_layers // 2
        places = (1, half - 1, self.config.num_hidden_layers - 4)
        # hidden_states[0] are the embeddings, and the last ones are normed.
        return torch.cat([self._after(tokens, max(place, 0)) for place in places], dim=-1)

    def _after(self, tokens: list[int], layer: int) -> Tensor:
        """Activations [n, H] that a layer of the target leaves."""
        found: list[Tensor] = []
        module = self.target[0].model.layers[layer]
        hook = module.register_forward_hook(lambda *args: found.append(_first(args[-1])))
        self.target[0](torch.tensor([tokens]))
        hook.remove()
        return found[0][0]

    @torch.no_grad()
    def propose(self, tokens: list[int], most: int, first: int = 0) -> list[int]:
        """The head's likeliest continuation of a sequence, followed from token `first` on."""
        features = list(self.features(tokens[:-1])[first:])
        is_own = [False] * len(features)
        ids = tokens[first + 1 :]
        for _ in range(most):
            last, token = self._next(ids, features, is_own)
            ids = [*ids, token]
            features, is_own = [*features, last], [*is_own, True]
        return ids[len(tokens) - first - 1 :]

    def _next(
        self, ids: list[int], features: list[Tensor], is_own: list[bool]
    ) -> tuple[Tensor, int]:
        """The head's features after the last pair, and the token it chooses."""
        last = self._outputs(ids, features, is_own)[-1]
        if not self.is_eagle3:
            return last, int(self.target[0].lm_head(last).argmax())
        token = int(self.lm_head(self.norm(last)).argmax())
        return last, token + int(self.d2t[token])

    def _outputs(self, ids: list[int], features: list[Tensor], is_own: list[bool]) -> Tensor:
        """The head's features after each pair [n, hidden_size]."""
        embedded = self.target[0].model.embed_tokens(torch.tensor([ids]))
        if not self.is_eagle3:
            x = self.fc(torch.cat([embedded, torch.stack(features)[None]], dim=-1))
            return self._layer(self.layers[0], self.layers[0].input_layernorm(x), x)[0]
        joined = [
            given if own else self.fc(given) for given, own in zip(features, is_own, strict=True)
        ]
        hidden = torch.stack(joined)[None]
        layer = self.midlayer
        seen = torch.cat([layer.input_layernorm(embedded), layer.hidden_norm(hidden)], dim=-1)
        return self._layer(layer, seen, hidden)[0]

    @torch.no_grad()
    def fit(self, sequences: Sequence[list[int]]) -> PlainHead:
        """Be right now and then after some sequences, by least squares."""
        (self._fit_lm_head if self.is_eagle3 else self._fit_features)(sequences)
        return self

    def _fit_lm_head(self, sequences: Sequence[list[int]]) -> None:
        known = torch.arange(self.num_tokens) + self.d2t
        outputs, right = [], []
        for tokens in sequences:
            features = list(self.features(tokens[:-2]))
            is_own = [False] * len(features)
            outputs.append(self.norm(self._outputs(tokens[1:-1], features, is_own)))
            right.append(torch.tensor(tokens[2:]).unsqueeze(1) == known)
        self.lm_head.weight.copy_(_least_squares(outputs, right))

    def _fit_features(self, sequences: Sequence[list[int]]) -> None:
        """The layer only whispers, so that the target's next features follow from the last ones."""
        layer, given, wanted = self.layers[0], [], []
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.mul_(0.1)
        for tokens in sequences:
            features = self.features(tokens)
            embedded = self.target[0].model.embed_tokens(torch.tensor(tokens[1:]))
            given.append(torch.cat([embedded, features[:-1]], dim=-1))
            wanted.append(features[1:])
        self.fc.weight.copy_(_least_squares(given, wanted))
        self.fc.bias.zero_()

    def _layer(self, layer: Any, seen: Tensor, residual: Tensor) -> Tensor:
        num = seen.shape[1]
        positions = LlamaRotaryEmbedding(self.config)(residual, torch.arange(num)[None])
        mask = torch.full((num, num), torch.finfo(torch.float32).min).triu(1)[None, None]
        attended = layer.self_attn(seen, position_embeddings=positions, attention_mask=mask)[0]
        x = residual + attended
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def save(self, folder: Path, has_ends: bool = False) -> Path:
        """Write it as its authors publish theirs; has_ends: with the target's own ends."""
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        ends = {
            "embed_tokens.weight": self.target[0].model.embed_tokens.weight,
            "lm_head.weight": self.target[0].lm_head.weight,
        }
        if has_ends:
            state = {**ends, **state}
        save_file(
            {name: tensor.detach().clone() for name, tensor in state.items()},
            folder / "model.safetensors",
        )
        own = {"num_hidden_layers": 1, "draft_vocab_size": self.num_tokens}
        config = {**self.config.to_dict(), **own, "architectures": ["LlamaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def _least_squares(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The weight [W, G] that makes `wanted` [n, W] of `given` [n, G]."""
    found: Tensor = torch.linalg.lstsq(torch.cat([*given]), torch.cat([*wanted]).float()).solution
    return found.T


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def save_agreeing(folder: Path, **options: Any) -> tuple[PlainHead, Path, Path]:
    """A head whose proposals are kept now and then, its target's folder, and its own.

    options: those of PlainHead.
    """
    model = tiny_hf_model("llama", seed=3, num_hidden_layers=5)
    plain = PlainHead(model, **options)
    with torch.no_grad():
        if plain.is_eagle3:  # both mostly say one of three tokens
            liked = torch.arange(8, 11)
            plain.lm_head.weight[liked] *= 5
            model.lm_head.weight[liked + plain.d2t[liked]] *= 5
        else:  # both mostly say what follows from the last token alone
            plain.fc.weight *= 0.03
            plain.fc.bias *= 0.03
            plain.fc.weight += torch.eye(*plain.fc.weight.shape)
            for layer in (*model.model.layers, *plain.layers):
                layer.self_attn.o_proj.weight *= 0.01
                layer.mlp.down_proj.weight *= 0.01
    folders = folder / "target", folder / "head"
    for made in folders:
        made.mkdir()
    return plain, save_tiny(model, folders[0]), plain.save(folders[1])


def make_fused_head(folder: Path, head_folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """A target with the head of a folder in its graphs, as NxDI's scripts make it.

    `draft_options` are the head's own.
    """
    own = {"speculation_length": 0, "enable_fused_speculation": False, "is_eagle_draft": True}
    own |= options.pop("draft_options", {})
    fused = {"enable_fused_speculation": True, "enable_eagle_speculation": True}
    given = {"speculation_length": 4, "on_device_sampling_config": {}, **fused, **options}
    config = make_config(folder, **given)
    neuron_config = copy.deepcopy(config.neuron_config)
    for name, value in own.items():
        setattr(neuron_config, name, value)
    attributes = load_pretrained_config(head_folder)
    head_config = LlamaInferenceConfig(neuron_config, load_config=attributes)
    target_cls = class_for_folder(folder)
    config.fused_spec_config = FusedSpecNeuronConfig(
        target_cls._model_cls, head_config, head_folder
    )
    return target_cls(folder, config)


def load_fused_head(folder: Path, head_folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """`make_fused_head`, compiled to `folder/fused` and loaded."""
    return loaded(make_fused_head(folder, head_folder, **options), folder / "fused")


def load_head(
    folder: Path, target_folder: Path | None = None, **options: Any
) -> NeuronBaseForCausalLM:
    """The head of a folder, compiled for the eager backend and loaded."""
    model_cls = class_for_architecture("eagle3" if options.get("is_eagle3") else "eagle")
    config_cls = model_cls.get_config_cls()
    options = {"backend": "eager", "torch_dtype": torch.float32, **options}
    neuron_config = config_cls.get_neuron_config_cls()(is_eagle_draft=True, **options)
    target = {} if target_folder is None else {"target_model_path": str(target_folder)}
    app = model_cls(folder, config_cls.from_pretrained(folder, neuron_config, **target))
    app.compile(folder / "artifact", progress=False)
    app.load(folder / "artifact")
    return app
