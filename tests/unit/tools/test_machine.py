from __future__ import annotations

import torch

from nxdi.tools.machine import machine_facts, memory_bytes, num_cores


def test_facts_are_text_and_none_is_missing() -> None:
    facts = machine_facts()
    assert all(isinstance(value, str) and value for value in facts.values())
    assert facts["torch"] == torch.__version__
    assert facts["cores"] == str(num_cores())
    assert num_cores() >= 1


def test_memory() -> None:
    memory = memory_bytes()
    assert memory is None or memory > 1 << 28
