"""What the tests of the ports share: transformers' answers, computed once for each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from golden.parity import Reference
from port.cases import BY_NAME

# Around the prefill buckets 16, 32 and 64.
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 63, 64)


@pytest.fixture(scope="session")
def reference_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """transformers' continuations, by the name of a port."""
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = BY_NAME[name].make_reference(tmp_path_factory.mktemp(name), LENGTHS)
        return made[name]

    return get
