from __future__ import annotations

import pytest

from nxdi.graph.inputs import (
    BATCH,
    INPUT_IDS,
    POSITION_IDS,
    SAMPLING_PARAMS,
    SEQ_IDS,
    TOKENS,
    UNIFORM,
    InputSpec,
)


def test_symbolic_and_fixed_dims() -> None:
    spec = InputSpec("image", (BATCH, TOKENS, 3), "float32", 0)
    assert spec.shape(batch_size=4, num_tokens=16) == (4, 16, 3)


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        (INPUT_IDS, (2, 8), "int32"),
        (POSITION_IDS, (2, 8), "int32"),
        (SEQ_IDS, (2,), "int32"),
        (SAMPLING_PARAMS, (2, 3), "float32"),
        (UNIFORM, (2,), "float32"),
    ],
)
def test_the_base_inputs(spec: InputSpec, shape: tuple[int, ...], dtype: str) -> None:
    assert spec.shape(batch_size=2, num_tokens=8) == shape
    assert spec.dtype == dtype


def test_padding_is_marked_by_position_minus_one() -> None:
    assert POSITION_IDS.fill == -1


def test_equal_declarations_are_equal() -> None:
    assert InputSpec("a", (BATCH,), "int32", 0) == InputSpec("a", (BATCH,), "int32", 0)
    assert InputSpec("a", (BATCH,), "int32", 0) != InputSpec("a", (BATCH,), "int32", 1)
