"""Many prompts through vLLM on nxdi's graphs, in one call.

    python examples/vllm_offline.py MODEL_FOLDER

See docs/vllm.md for how to install vLLM without CUDA.
"""

from __future__ import annotations

import argparse

from vllm import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "The sea is"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Many prompts through vLLM on nxdi's graphs.")
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    args = parser.parse_args()

    llm = LLM(
        args.model,
        max_num_seqs=4,
        max_model_len=128,
        dtype="float32",
        tensor_parallel_size=args.tensor_parallel_size,
        additional_config={"override_neuron_config": {"token_generation_buckets": [64, 128]}},
    )
    greedy = SamplingParams(temperature=0, max_tokens=24)
    sampled = SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_tokens=24)
    for params in (greedy, sampled):
        for output in llm.generate(PROMPTS, params):
            print(repr(output.prompt), "->", repr(output.outputs[0].text))


if __name__ == "__main__":  # vLLM starts a process of its own, which imports this file
    main()
