"""Which proposed tokens are kept, and which token follows them. Pure functions of tensors.

A row proposes up to K tokens. The target has looked at all of them in one step, so there is a
choice, or a distribution, after each of the K + 1 tokens: the row's last one and those proposed.
A step brings each row the kept tokens and one more: 1 to K + 1 in all.

Legend: B rows, V vocabulary. Typical shapes: B 1 to 64, K 1 to 7, V 32000 to 256000. Where a row
proposes fewer than K, its `proposed` ends in -1; results end in -1 likewise. Random numbers are
inputs. All functions trace: no value decides what is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.modules.sampling import draw_token

NO_TOKEN = -1


class Accepted(NamedTuple):
    """What a step brings: tokens [B, K + 1], the first `num_tokens` [B] of them real; int32."""

    tokens: Tensor
    num_tokens: Tensor


def accept_matching(proposed: Tensor, chosen: Tensor) -> Accepted:
    """Keep the leading proposals that the target has chosen as well.

    Greedy choices give greedy decoding. Choices sampled with the random number that belongs to
    their position give what decoding samples with it, token for token, whatever was proposed. A
    proposal that is certain is so kept with its probability under the target, as by rejection.
    Shapes: proposed [B, K]; chosen [B, K + 1]: what the target chooses after each token.
    """
    return _accepted(chosen, proposed == chosen[:, :-1])


def accept_by_rejection(
    proposed: Tensor, target: Tensor, draft: Tensor, keep: Tensor, draw: Tensor
) -> Accepted:
    """Keep each leading proposal with probability min(1, p / q); then one token makes up for it.

    After a rejection that token is drawn from what the target gives beyond the draft,
    norm(max(p - q, 0)); after the last proposal, from the target. So every token has the
    distribution of the target.
    Shapes: proposed [B, K]; target p [B, K + 1, V]; draft q [B, K, V], what each proposal was drawn
    from; keep [B, K] and draw [B]: numbers in [0, 1), independent of each other and of the
    proposals.
    Source: arXiv:2211.17192 section 2.3.
    """
    places = proposed.clamp(min=0).long().unsqueeze(-1)
    p, q = (x.gather(-1, places).squeeze(-1) for x in (target[:, :-1], draft))
    # Not u <= p / q: a proposal that the target excludes is never kept, though u may be 0.
    is_kept = (keep * q < p) & (proposed != NO_TOKEN)
    last = _num_leading(is_kept)
    # Where nothing was proposed nothing was rejected: the draft counts for nothing there.
    proposals = F.pad(draft * (proposed != NO_TOKEN).unsqueeze(-1), (0, 0, 0, 1))
    index = last.long()[:, None, None].expand(-1, 1, target.shape[-1])
    p, q = (x.gather(1, index).squeeze(1) for x in (target, proposals))
    token = draw_token(residual(p, q), draw).to(proposed.dtype)
    chosen = F.pad(proposed, (0, 1)).scatter(1, last.long().unsqueeze(1), token.unsqueeze(1))
    return _accepted(chosen, is_kept)


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """What the target gives beyond the draft, not normalised. [B, V], [B, V] -> [B, V].

    Where rounding leaves nothing, the target itself.
    """
    beyond = (target - draft).clamp(min=0)
    return torch.where(beyond.sum(dim=-1, keepdim=True) > 0, beyond, target)


def _num_leading(is_kept: Tensor) -> Tensor:
    """How many proposals come before the first that is not kept. [B, K] -> int32 [B]."""
    return is_kept.cumprod(dim=1, dtype=torch.int32).sum(dim=1, dtype=torch.int32)


def _accepted(chosen: Tensor, is_kept: Tensor) -> Accepted:
    """`chosen` [B, K + 1] up to the token after the kept ones."""
    count = 1 + _num_leading(is_kept)
    places = torch.arange(chosen.shape[1], dtype=torch.int32, device=chosen.device)
    tokens = torch.where(places < count.unsqueeze(1), chosen.to(torch.int32), NO_TOKEN)
    return Accepted(tokens, count)
