"""The planner's predictions against published measurements, and the fit of its constants.

    python benchmarks/planner.py             every published row, and the shares within 25 %
    python benchmarks/planner.py --fit       the constants of nxdi.tools.estimate.times, fitted anew

published_decoders.csv has decoders on inf2.48xlarge, trn1.32xlarge and trn2.48xlarge. By `source`:
A   aws-neuron-sdk, about-neuron/benchmarks/{inf2,trn1}/{latency,throughput}_data_decoder.csv:
    Transformers NeuronX of SDK 2.18
B,C the same repository, tutorials of NxD Inference for Llama 3.3 70B and Llama 3.1 405B
E   vllm-neuron's tutorial of EAGLE3, its base line
F   optimum-neuron, benchmark/vllm
Constants are fitted to the inf2 rows only. Nothing runs on a device.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nxdi.graph.plan import GraphSpec
    from nxdi.models.application_base import NeuronApplicationBase
    from nxdi.tools.estimate.hardware import Hardware
    from nxdi.tools.estimate.times import Efficiency, Times
    from nxdi.tools.estimate.work import Work

TABLE = Path(__file__).parent / "published_decoders.csv"
CLOSE = 0.25


def _shape(
    layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int, family: str
) -> dict[str, Any]:
    model_type = family.lower()
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


_LLAMA_3_8B = _shape(32, 4096, 14336, 32, 8, 128256, "Llama")
_LLAMA_3_70B = _shape(80, 8192, 28672, 64, 8, 128256, "Llama")
CONFIGS = {
    "Llama-2-7b": _shape(32, 4096, 11008, 32, 32, 32000, "Llama"),
    "Llama-2-13b": _shape(40, 5120, 13824, 40, 40, 32000, "Llama"),
    "CodeLlama-13b-hf": _shape(40, 5120, 13824, 40, 40, 32016, "Llama"),
    "Llama-2-70b": _shape(80, 8192, 28672, 64, 8, 32000, "Llama"),
    "Llama-3-8B": _LLAMA_3_8B,
    "Llama-3.1-8B": _LLAMA_3_8B,
    "Llama-3-70B": _LLAMA_3_70B,
    "Llama-3.3-70B": _LLAMA_3_70B,
    "Llama-3.1-405B": _shape(126, 16384, 53248, 128, 8, 128256, "Llama"),
    "Mistral-7B-Instruct-v0.2": {
        **_shape(32, 4096, 14336, 32, 8, 32000, "Mistral"),
        "sliding_window": None,
    },
    "Qwen3-32B": _shape(64, 5120, 25600, 64, 8, 151936, "Qwen3"),
}


@dataclass(frozen=True)
class Row:
    """One published measurement; milliseconds, None where it has none."""

    number: int
    source: str
    model: str
    instance: str
    tp_degree: int
    weights: str
    batch_size: int
    seq_len: int
    prompt_len: int
    new_tokens: int
    ttft_ms: float | None
    tpot_ms: float
    tokens_per_second: float

    @classmethod
    def read(cls, fields: dict[str, str]) -> Row:
        kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
        return cls(
            **{
                name: kinds[str(cls.__annotations__[name]).split(" ")[0]](text) if text else None
                for name, text in fields.items()
            }
        )


def published_rows(*instances: str) -> list[Row]:
    """The rows of some instances, or of all."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [Row.read(fields) for fields in csv.DictReader(file)]
    return [row for row in rows if not instances or row.instance in instances]


@dataclass(frozen=True)
class Step:
    """The graph that a measurement is about, and its work."""

    spec: GraphSpec
    work: Work
    hardware: Hardware

    def times(self, efficiency: Efficiency | None = None) -> Times:
        import torch

        from nxdi.tools.estimate.times import PUBLISHED, predict

        fitted = efficiency or PUBLISHED
        return predict(self.work, self.spec.phase, self.hardware, torch.bfloat16, fitted)


def prefill_step(row: Row) -> Step:
    """The graph that yields the first token."""
    from nxdi.types import Phase

    return _count(row, Phase.PREFILL, row.batch_size, row.prompt_len)


def decode_step(row: Row) -> Step:
    """The graph that yields the median token: it attends to the prompt and half of the answer."""
    from nxdi.types import Phase

    return _count(row, Phase.DECODE, row.batch_size, row.prompt_len + row.new_tokens // 2)


def _count(row: Row, phase: Any, num_rows: int, length: int) -> Step:
    from nxdi.tools.estimate.count import GraphCounter
    from nxdi.tools.estimate.hardware import find_hardware

    app = _make_app(
        row.model, row.instance, row.tp_degree, row.weights, row.batch_size, row.seq_len
    )
    spec = app.plan.choose(phase, num_rows, length)
    hardware = find_hardware(row.instance, num_ranks=row.tp_degree)
    return Step(spec, GraphCounter(app).count(spec), hardware)


@cache
def _make_app(
    model: str, target: str, tp_degree: int, weights: str, batch_size: int, seq_len: int
) -> NeuronApplicationBase:
    from nxdi.models.auto import AutoModelForCausalLM

    options: dict[str, Any] = {"quantized": True, "quantization_type": "per_channel_symmetric"}
    options = options if weights == "int8" else {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIGS[model]), encoding="utf-8")
        cls = AutoModelForCausalLM.class_for(folder)
        neuron_config = cls.get_config_cls().get_neuron_config_cls()(
            backend="neuron",
            target=target,
            tp_degree=tp_degree,
            batch_size=batch_size,
            seq_len=seq_len,
            enable_bucketing=True,
            **options,
        )
        return cls(folder, neuron_config=neuron_config)


def fit_efficiency(rows: Sequence[Row]) -> Efficiency:
    """Constants with the least squares of relative errors: first of decode, then of prefill."""
    import numpy as np

    from nxdi.tools.estimate.times import PUBLISHED, Efficiency

    def solve(terms: list[list[float]], measured: list[float]) -> list[float]:
        """One weight for each column after the first, which is known already."""
        columns = np.array(terms) / np.array(measured)[:, None]
        return np.linalg.lstsq(columns[:, 1:], 1 - columns[:, 0], rcond=None)[0].tolist()

    terms = []
    for row in rows:
        step = decode_step(row)
        known, work, rate = step.times(PUBLISHED), step.work, step.hardware.bytes_per_second
        streamed, held = work.weight_bytes + work.activation_bytes, work.cache_bytes
        terms.append(
            [known.collectives + known.compute, streamed / rate, held / rate, work.num_products]
        )
    weights, caches, product = solve(terms, [row.tpot_ms / 1e3 for row in rows])
    decode = Efficiency(
        weights=1 / weights, caches=1 / caches, decode_product_us=product * 1e6, compute=1.0
    )
    terms, measured = [], []
    for row in rows:
        if row.ttft_ms is not None:
            step = prefill_step(row)
            known = step.times(decode)
            terms.append([known.collectives + known.memory, known.compute, step.work.num_products])
            measured.append(row.ttft_ms / 1e3)
    compute, product = solve(terms, measured)
    return Efficiency(
        compute=1 / compute,
        weights=decode.weights,
        caches=decode.caches,
        decode_product_us=decode.decode_product_us,
        prefill_product_us=product * 1e6,
    )


@dataclass(frozen=True)
class Comparison:
    """A published row and what is predicted for it, in the same units."""

    row: Row
    ttft_ms: float
    tpot_ms: float
    bound: str

    @property
    def tokens_per_second(self) -> float:
        seconds = (self.ttft_ms + self.row.new_tokens * self.tpot_ms) / 1e3
        return self.row.batch_size * self.row.new_tokens / seconds

    def error(self, figure: str) -> float | None:
        """Relative, or None where nothing was published."""
        published = getattr(self.row, figure)
        return None if published is None else getattr(self, figure) / published - 1


FIGURES = {"tpot_ms": "TPOT", "ttft_ms": "TTFT", "tokens_per_second": "tokens/s"}


def compare(row: Row) -> Comparison:
    decode = decode_step(row).times()
    return Comparison(row, prefill_step(row).times().total * 1e3, decode.total * 1e3, decode.bound)


def share_close(comparisons: Iterable[Comparison], figure: str) -> float:
    """The share of rows whose figure is predicted within 25 %."""
    errors = [found for one in comparisons if (found := one.error(figure)) is not None]
    return sum(abs(error) <= CLOSE for error in errors) / len(errors)


def table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """A line for each row, then the shares of each instance."""
    yield (
        f"{'#':>3} {'model':25}{'target':>7}{'batch':>6}{'seq':>6}{'prompt':>7}"
        f"{'TPOT ms':>9}{'predicted':>10}{'error':>7}{'TTFT ms':>10}{'predicted':>10}{'error':>7}"
        "  decode bound by"
    )
    for one in comparisons:
        row, ttft, error = one.row, one.row.ttft_ms, one.error("ttft_ms")
        first = "" if ttft is None else f"{ttft:.1f}"
        yield (
            f"{row.number:>3} {row.model:25}{row.instance:>7}{row.batch_size:>6}{row.seq_len:>6}"
            f"{row.prompt_len:>7}{row.tpot_ms:>9.2f}{one.tpot_ms:>10.2f}"
            f"{one.error('tpot_ms'):>+7.0%}{first:>10}{one.ttft_ms:>10.1f}"
            f"{'' if error is None else format(error, '+.0%'):>7}  {one.bound}"
        )
    for instance in dict.fromkeys(one.row.instance for one in comparisons):
        own = [one for one in comparisons if one.row.instance == instance]
        for figure, name in FIGURES.items():
            errors = [abs(e) for one in own if (e := one.error(figure)) is not None]
            yield (
                f"{instance}: {name} within {CLOSE:.0%} on {share_close(own, figure):.0%} of "
                f"{len(errors)} rows, median error {statistics.median(errors):.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants to the inf2 rows")
    if parser.parse_args().fit:
        print(fit_efficiency(published_rows("inf2")))
        return
    print("\n".join(table([compare(row) for row in published_rows()])))


if __name__ == "__main__":
    main()
