"""What all tests share: deterministic property tests, a cache folder of their own, a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

from byte_tokenizer import make_byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

settings.register_profile(
    "nxdi",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("nxdi")

# Models in tests are tiny: a team of threads costs them more than it gains, by a factor of ten
# where cores are shared.
torch.set_num_threads(1)

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled pieces are shared by the tests of one run and never touch the user's cache."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers of the run
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NXDI_CACHE_DIR", str(folder / "nxdi-cache"))
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Compiled code is made for a number of threads; for one, parallel loops are left out."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, 256 in all, and a chat template."""
    return make_byte_tokenizer(TEMPLATE)
