"""What a compiled piece is known by in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nxdi.runtime.backends.cpu import compiler
from nxdi.runtime.backends.cpu.pieces import Part, Piece


class Scale(nn.Module):
    """A factor from a table that is neither parameter nor buffer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.table = torch.tensor([factor])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table


@pytest.fixture
def key_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[nn.Module, Tensor], str]:
    """The cache key of a module; nothing is compiled."""
    keys: list[str] = []

    def get_or_build(key: str, build: object) -> Path:
        keys.append(key)
        return tmp_path

    monkeypatch.setattr(compiler, "get_or_build", get_or_build)

    def key_of(module: nn.Module, x: Tensor) -> str:
        part = Part("scale", module, lambda x, *_: ([module(x[0])], []), (), slice(0, 0))
        compiler.compile_piece(Piece(part), ([x], [], [], []), module)
        return keys[-1]

    return key_of


def test_the_key_follows_from_what_decides_the_code(
    key_of: Callable[[nn.Module, Tensor], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.ones(4)
    key = key_of(Scale(2.0), x)
    assert key_of(Scale(2.0), 3 * x) == key
    assert key_of(Scale(3.0), x) != key  # a table goes into the code
    assert key_of(Scale(2.0), torch.ones(5)) != key
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert key_of(Scale(2.0), x) != key
