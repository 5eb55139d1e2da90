"""What all tests share: deterministic property tests, and a cache folder of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

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


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled pieces are shared by the tests of one run and never touch the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NXDI_CACHE_DIR", str(tmp_path_factory.mktemp("nxdi-cache")))
        yield
