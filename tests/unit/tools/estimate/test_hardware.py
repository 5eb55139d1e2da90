from __future__ import annotations

import pytest
import torch

from nxdi.config.targets import TARGETS
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.tools.estimate.hardware import find_hardware, number_sources


def test_a_rank_of_two_cores_has_twice_of_everything() -> None:
    two, one = find_hardware("trn2"), find_hardware("trn2", 1)
    assert (two.logical_size, one.logical_size) == (2, 1)
    for name in ("bytes_per_second", "link_bytes_per_second", "memory"):
        assert getattr(two, name) == 2 * getattr(one, name)
    assert two.flops_per_second(torch.bfloat16) == 2 * one.flops_per_second(torch.bfloat16)
    assert 4 * one.flops_per_second(torch.float32) == one.flops_per_second(torch.bfloat16)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target(target: str) -> None:
    hardware = find_hardware(target)
    assert 70e12 < hardware.flops_per_second(torch.bfloat16) / hardware.logical_size < 100e12
    assert 0.85 * hardware.memory < hardware.usable_memory < hardware.memory


def test_an_inf2_core_by_its_published_numbers() -> None:
    hardware = find_hardware("inf2")
    assert hardware.bytes_per_second == 410e9
    assert hardware.link_bytes_per_second == 206e9 / 2
    assert hardware.memory == 16 * 2**30


def test_every_number_has_a_source() -> None:
    sources = number_sources()
    assert {"target", "link_bytes_per_ns", "collective_us", "machine.tensor_ghz"} <= sources.keys()
    assert all(sources.values())


def test_what_no_target_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="'trn9' is not known; use one of inf2"):
        find_hardware("trn9")
    with pytest.raises(ConfigError, match="logical_nc_config=2 on trn1"):
        find_hardware("trn1", 2)
    with pytest.raises(UnsupportedError, match="25 ranks do not fit one inf2 instance"):
        find_hardware("inf2", num_ranks=25)
