from __future__ import annotations

import torch

from nxdi.modules.sequence import SequenceGather
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.parallel_state import tensor_parallel
from tiny_modules import drawn


def test_off_does_nothing() -> None:
    x = drawn(2, 4, 3)
    with tensor_parallel(2):
        assert SequenceGather(enabled=False)(x) is x


def test_one_rank_has_the_whole_sequence_already() -> None:
    x = drawn(2, 4, 3)
    assert SequenceGather(enabled=True)(x) is x


def test_pieces_become_whole_sequences() -> None:
    x = drawn(2, 4, 3)
    with tensor_parallel(2):
        gather = SequenceGather(enabled=True)
    got = SimulatedWorld(2).run([lambda part=part: gather(part) for part in x.chunk(2, dim=1)])
    assert all(torch.equal(whole, x) for whole in got)
