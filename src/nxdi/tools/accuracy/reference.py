"""The reference: the same checkpoint in transformers, float32, one prompt after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError, ShapeError
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM


@dataclass(frozen=True)
class Prompts:
    """Rows of tokens of any lengths.

    rows: int64 [length] each.
    """

    rows: tuple[Tensor, ...]

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor | None = None) -> Prompts:
        """From a batch [B, S] padded on either side. Raises: ShapeError for an unusable one."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.dim() != 2 or mask.shape != input_ids.shape or not bool(mask.any(1).all()):
            raise ShapeError(
                f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must "
                "be [rows, tokens] alike, with at least one token in each row"
            )
        return cls(tuple(ids[m.bool()] for ids, m in zip(input_ids.long(), mask, strict=True)))

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    def batch(self, pad_token_id: int = 0) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask) [B, longest], padded on the left as generation wants it."""
        ids = torch.full((len(self.rows), max(self.lengths)), pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(self.rows):
            ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, 1
        return ids, mask


def load_reference(model: NeuronBaseForCausalLM) -> nn.Module:
    """transformers' model of the same checkpoint, in float32."""
    return type(model).load_hf_model(model.model_path).float().eval()


def greedy(reference: nn.Module, prompts: Prompts, num_tokens: int) -> tuple[Tensor, Tensor]:
    """What the reference continues with: tokens int64 [T, B] and logits float32 [T, B, V]."""
    parts = [_continue(reference, row, num_tokens) for row in prompts.rows]
    tokens, logits = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    return tokens, logits


@torch.no_grad()
def _continue(reference: Any, prompt: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """tokens [T] and logits [T, V] of one row; whatever ends a text is a token like others."""
    out = reference(input_ids=prompt[None], use_cache=True)
    logits = [out.logits[0, -1].float()]
    while len(logits) < num_tokens:
        token = logits[-1].argmax().reshape(1, 1)
        out = reference(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0, -1].float())
    return torch.stack(logits).argmax(dim=-1), torch.stack(logits)


def forced_steps(
    model: NeuronBaseForCausalLM, prompts: Prompts, tokens: Tensor
) -> Iterator[Tensor]:
    """Our logits [B, V] of each step: a prefill, then decodes that are given `tokens` [T, B].

    Raises: ConfigError if the graphs return no logits.
    """
    input_ids, attention_mask = prompts.batch()
    yield _logits(model(input_ids, attention_mask=attention_mask))
    positions = torch.tensor(prompts.lengths)
    for step in tokens[:-1]:
        yield _logits(model(step[:, None], position_ids=positions[:, None]))
        positions = positions + 1


def _logits(output: CausalLMOutput) -> Tensor:
    if output.logits is None:
        raise ConfigError(
            "the graphs return tokens only; to compare logits compile with output_logits=True, or "
            "without on_device_sampling_config"
        )
    return output.logits[:, -1].float()
