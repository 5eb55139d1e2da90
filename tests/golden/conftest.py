"""What golden tests share: transformers' answers, computed once for each variant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from golden.parity import Reference, make_reference
from golden.table import BY_NAME
from speculation_modes import Folders, save_folders

# Around the prefill buckets 16, 32 and 64.
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 63, 64)


@pytest.fixture(scope="session")
def reference_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """transformers' continuations, by the name of a variant."""
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = make_reference(BY_NAME[name], tmp_path_factory.mktemp(name), LENGTHS)
        return made[name]

    return get


@pytest.fixture(scope="session")
def mode_folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Of all ways to speculate."""
    return save_folders(tmp_path_factory.mktemp("modes"))
