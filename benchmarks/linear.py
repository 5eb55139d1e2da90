"""Speed of the weight-streaming linear op against F.linear, and its share of the memory bandwidth.

    python benchmarks/linear.py                      every layer of both models, 1 to 128 rows
    python benchmarks/linear.py --model smollm2 --rows 1 8

Every call gets a weight that no cache holds, as in a model. All columns of a line are measured in
turn, several times, and the medians shown. Run it on a quiet machine: with other work on the same
cores OpenMP loops wait for each other and every number is noise.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from measure import alternate, seconds, streaming_read_rate

if TYPE_CHECKING:
    from torch import Tensor

# (outputs, inputs): attention, key and value, feed-forward up and down, vocabulary
SHAPES = {
    "smollm2": [(576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576)],
    "llama-1b": [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192), (128256, 2048)],
}
ROUNDS = 7
BLOCK = 0.03  # seconds of calls behind one time
UNCACHED = 2**28  # bytes of weights to go round


def call_time(call: Callable[[Tensor], object], weights: list[Tensor]) -> Callable[[], float]:
    """A measurement: seconds per call, over a block of calls with one weight after the other."""
    turns = itertools.cycle(weights)
    call(next(turns))
    count = max(1, min(1000, round(BLOCK / seconds(lambda: call(next(turns))))))

    def measure() -> float:
        return seconds(lambda: [call(next(turns)) for _ in range(count)]) / count

    return measure


def show_shape(outputs: int, inputs: int, num_rows: list[int]) -> None:
    import torch
    import torch.nn.functional as F

    from nxdi.kernels.cpu.linear import load_linear_op

    op = load_linear_op()
    copies = 1 + UNCACHED // (4 * outputs * inputs)
    full = [torch.randn(outputs, inputs) for _ in range(copies)]
    half = [weight.bfloat16() for weight in full for _ in range(2)]
    print(f"\n{inputs} -> {outputs}")
    print("rows   F.linear   float32  bfloat16   ms    float32      bfloat16      of GB/s read")
    for rows in num_rows:
        x = torch.randn(rows, inputs)
        times: dict[str, Callable[[], float]] = {
            "torch": call_time(partial(F.linear, x), full),
            "float32": call_time(partial(op, x), full),
            "bfloat16": call_time(partial(op, x), half),
            "read": partial(streaming_read_rate, rounds=1),
        }
        found = alternate(times, ROUNDS)
        line = f"{rows:4}" + "".join(
            f"{1e3 * found[name]:10.3f}" for name in ("torch", "float32", "bfloat16")
        )
        for name, width in (("float32", 4), ("bfloat16", 2)):
            rate = width * outputs * inputs / found[name]
            line += f"  {rate / 1e9:5.1f} GB/s {rate / found['read']:4.0%}"
        print(f"{line}  {found['read'] / 1e9:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 128])
    arguments = parser.parse_args()

    import torch

    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    with torch.inference_mode():
        for model in arguments.model:
            print(f"\n{model}", end="")
            for outputs, inputs in SHAPES[model]:
                show_shape(outputs, inputs, arguments.rows)


if __name__ == "__main__":
    main()
