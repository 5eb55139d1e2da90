"""A checkpoint with flipped or missing bytes is read, or refused by a WeightError; nothing else."""

from __future__ import annotations

import io
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from nxdi.errors import WeightError
from nxdi.runtime.checkpoint import read_checkpoint

TENSORS = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}


def pickled(is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


SOUND = [
    ("model.safetensors", save(TENSORS)),
    ("pytorch_model.bin", pickled(is_zip=True)),
    ("pytorch_model.bin", pickled(is_zip=False)),
]


@given(
    st.sampled_from(SOUND),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
def test_damage_never_escapes(
    sound: tuple[str, bytes], share: float, flips: list[tuple[float, int]]
) -> None:
    name, content = sound
    data = bytearray(content[: round(len(content) * share)] if not flips else content)
    for place, value in flips:
        data[int(place * len(data))] = value
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of oddities in a pickle before it refuses it
        (Path(folder) / name).write_bytes(data)
        with suppress(WeightError):
            assert all(isinstance(x, torch.Tensor) for x in read_checkpoint(Path(folder)).values())
