"""Speed, compile time and memory of the cpu backend against transformers, as ratios in one run.

    python benchmarks/cpu_backend.py                  SmolLM2-135M and a random Llama of 1B shape
    python benchmarks/cpu_backend.py --model smollm2

Run it on a quiet machine: with other work on the same cores OpenMP loops wait for each other and
every number is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from measure import Check, alternate, resident_bytes, seconds, show, streaming_read_rate

ROUNDS = {"smollm2": 5, "llama-1b": 3}
NEW_TOKENS = {"smollm2": 64, "llama-1b": 16}
PROMPT_LEN = 128
BUCKET = 256
LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "max_position_embeddings": 2048,
}


def model_folder(name: str, work: Path) -> Path:
    """The Hugging Face folder of a benchmark model; the 1B one has random weights."""
    if name == "smollm2":
        from fetch_smollm2 import fetch_smollm2

        return fetch_smollm2()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = work / name
    if not folder.exists():
        torch.manual_seed(0)
        with torch.no_grad():
            LlamaForCausalLM(LlamaConfig(**LLAMA_1B)).save_pretrained(folder)
    return folder


def load_ours(folder: Path, batch_size: int, dtype: str, **options: Any) -> Any:
    import nxdi

    lengths = {
        "context_encoding_buckets": [PROMPT_LEN],
        "token_generation_buckets": [BUCKET],
        "seq_len": BUCKET,
    }
    settings = {"max_context_length": PROMPT_LEN, "enable_bucketing": True, **lengths, **options}
    return nxdi.AutoModelForCausalLM.from_pretrained(
        folder, backend="cpu", batch_size=batch_size, torch_dtype=dtype, **settings
    )


def decode_rate(
    generate: Callable[..., Any], batch_size: int, vocab_size: int, new_tokens: int
) -> float:
    """Tokens per second of decoding alone: a long generation less one of a single token."""
    import torch

    ids = torch.randint(
        10, vocab_size, (batch_size, PROMPT_LEN), generator=torch.Generator().manual_seed(0)
    )
    arguments = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    long = seconds(lambda: generate(ids, max_new_tokens=new_tokens + 1, **arguments))
    short = seconds(lambda: generate(ids, max_new_tokens=1, **arguments))
    return batch_size * new_tokens / (long - short)


def speed(name: str, folder: Path) -> list[Check]:
    """Decode and prefill against transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    vocab = reference.config.vocab_size
    weight_bytes = sum(p.numel() * 4 for p in reference.parameters())
    checks = []
    for batch_size, dtypes in ((1, ("float32", "bfloat16")), (8, ("float32",))):
        ours = {
            dtype: HuggingFaceGenerationAdapter(load_ours(folder, batch_size, dtype))
            for dtype in dtypes
        }
        runs = {
            dtype: _rate(name, adapter.generate, batch_size, vocab)
            for dtype, adapter in ours.items()
        }
        runs["transformers"] = _rate(name, reference.generate, batch_size, vocab)
        runs["read rate"] = streaming_read_rate
        rates = alternate(runs, ROUNDS[name])
        for key, value in rates.items():
            print(
                f"  {name} batch {batch_size} decode {key}: "
                + (f"{value / 1e9:.1f} GB/s" if key == "read rate" else f"{value:.1f} tok/s")
            )
        checks += _decode_checks(name, batch_size, rates, weight_bytes)
        del ours, runs
    return checks + _prefill_checks(name, folder, reference)


def _rate(
    name: str, generate: Callable[..., Any], batch_size: int, vocab: int
) -> Callable[[], float]:
    return lambda: decode_rate(generate, batch_size, vocab, NEW_TOKENS[name])


def _decode_checks(
    name: str, batch_size: int, rates: dict[str, float], weight_bytes: int
) -> list[Check]:
    theirs = rates["transformers"]
    if batch_size == 8:
        return [
            Check(
                f"{name}: decode float32, batch 8, against transformers",
                rates["float32"] / theirs,
                2.0,
            )
        ]
    bound = rates["read rate"] / weight_bytes
    must = 2.2 if name == "smollm2" else 1.5
    return [
        Check(
            f"{name}: decode float32, batch 1, against transformers",
            rates["float32"] / theirs,
            must,
        ),
        Check(
            f"{name}: decode bfloat16 weights against transformers float32",
            rates["bfloat16"] / theirs,
            2.5,
        ),
        Check(
            f"{name}: decode float32, share of the memory bound",
            rates["float32"] / bound,
            0.75,
            0.9,
        ),
    ]


def _prefill_checks(name: str, folder: Path, reference: Any) -> list[Check]:
    import torch

    checks = []
    for length in (128, 512):
        options = {
            "context_encoding_buckets": [length],
            "max_context_length": length,
            "seq_len": 1024,
        }
        ours = load_ours(folder, 1, "float32", **options, token_generation_buckets=[1024])
        ids = torch.randint(10, reference.config.vocab_size, (1, length))

        def theirs(ids: Any = ids) -> float:
            with torch.no_grad():
                return seconds(lambda: reference(ids, logits_to_keep=1))

        times = alternate(
            {"ours": lambda ids=ids, ours=ours: seconds(lambda: ours(ids)), "theirs": theirs},
            ROUNDS[name],
        )
        rates = {key: f"{length / time:.0f} tok/s" for key, time in times.items()}
        print(f"  {name} prefill {length}: {rates}")
        checks.append(
            Check(
                f"{name}: prefill {length} float32 against transformers",
                times["theirs"] / times["ours"],
                0.95,
            )
        )
    return checks


DEFAULT_GRAPHS = {
    "seq_len": 1024,
    "max_context_length": 1024,
    "enable_bucketing": True,
    "torch_dtype": "float32",
}


def compile_times(folder: Path, work: Path) -> list[Check]:
    """First compile of eight graphs (128 to 1024 tokens) with empty caches, then a second start."""
    env = {
        **os.environ,
        "NXDI_CACHE_DIR": str(work / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
    }
    first, second = (_child("load", folder, env) for _ in range(2))
    print(f"  first start {first}\n  second start {second}")
    limit = (second["weights"] * 1.25 + second["kv"]) / 2**20 + 400
    return [
        Check(
            "8 graphs of a 30-layer model: compile, per graph",
            first["compile"] / 8,
            15,
            5,
            False,
            "s",
        ),
        Check("8 graphs of the demo: first compile", first["compile"], 90, 30, False, "s"),
        Check(
            "load a compiled artefact and first token",
            second["load"] + second["first"],
            3,
            1,
            False,
            "s",
        ),
        Check(
            "second start against first compile",
            second["load"] / first["compile"],
            0.1,
            None,
            False,
        ),
        Check("resident memory, 8 graphs loaded", second["rss"] / 2**20, limit, None, False, "MiB"),
    ]


def _child(task: str, folder: Path, env: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", task, str(folder)]
    shown = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(shown.splitlines()[-1])
    return found


def child_load(folder: Path) -> dict[str, float]:
    """Compile or find eight graphs, load them, take one token; in a process of its own."""
    import torch
    import transformers  # noqa: F401  its import is not what is measured

    import nxdi

    start = time.perf_counter()
    model = nxdi.AutoModelForCausalLM.from_pretrained(folder, **DEFAULT_GRAPHS)
    total = time.perf_counter() - start
    first = seconds(lambda: model(torch.randint(10, 1000, (1, 100))))
    model.runner.warm_up()  # every graph has run
    weights = sum(
        t.numel() * t.element_size()
        for t in {t.data_ptr(): t for t in model.rank_weights((0,))[0].values()}.values()
    )
    kv = sum(c.numel() * c.element_size() for c in model.runner.executables[0].caches)
    return {
        "compile": total,
        "load": total,
        "first": first,
        "rss": resident_bytes(),
        "weights": weights,
        "kv": kv,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["smollm2", "llama-1b", "both"], default="both")
    parser.add_argument(
        "--work",
        type=Path,
        help="where the random model and the caches go (default: a temporary folder)",
    )
    parser.add_argument("--json", type=Path, help="also write the checks to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child_load(Path(arguments.child[1]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        names = ["smollm2", "llama-1b"] if arguments.model == "both" else [arguments.model]
        checks = []
        if "smollm2" in names:
            checks += compile_times(model_folder("smollm2", work), Path(temporary))
        for name in names:
            checks += speed(name, model_folder(name, work))
    met = show(checks)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(check) for check in checks], indent=1))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
