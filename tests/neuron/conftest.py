"""What the Neuron tests share: the double in place of the SDK, and an environment of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from neuron.nxd_double import Double


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Nothing a test or the backend sets stays; nothing set outside counts."""
    foreign = ("NEURON_", "BASE_COMPILE_WORK_DIR", "DISABLE_NUMERIC_CC", "FI_", "MASTER_")
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(foreign)]:
            del os.environ[name]
        yield


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Double:
    """An SDK and a device, as far as nxdi can tell."""
    double = Double()
    double.install(monkeypatch.setattr)
    return double
