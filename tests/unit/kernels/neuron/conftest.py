"""What tests of the kernels of Neuron devices share."""

from __future__ import annotations

import pytest


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the Neuron SDK were here; operators compute what their references do."""
    monkeypatch.setattr("nxdi.kernels.neuron.op.missing_compiler", lambda: None)
