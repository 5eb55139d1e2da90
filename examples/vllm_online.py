"""A vLLM server on nxdi's graphs, and a conversation with it through openai's client.

    python examples/vllm_online.py MODEL_FOLDER

See docs/vllm.md for how to install vLLM without CUDA.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request

from openai import OpenAI

PORT = 8017
URL = f"http://127.0.0.1:{PORT}"


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    """The first start compiles, which takes minutes."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{URL}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    sys.exit("the server has ended; its messages are above")


def talk(client: OpenAI) -> None:
    question = "What is the capital of France?"
    stream = client.chat.completions.create(
        model="nxdi",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=32,
        stream=True,
    )
    for part in stream:
        print(part.choices[0].delta.content or "", end="", flush=True)
    print()
    chosen = client.chat.completions.create(
        model="nxdi",
        messages=[{"role": "user", "content": "Is Paris in France?"}],
        max_tokens=4,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    print("yes or no:", chosen.choices[0].message.content)


def main() -> None:
    parser = argparse.ArgumentParser(description="A vLLM server on nxdi's graphs, and a client.")
    parser.add_argument("model", help="a Hugging Face folder with a chat template")
    args = parser.parse_args()
    lengths = ["--max-model-len", "256", "--max-num-seqs", "4", "--dtype", "float32"]
    command = ["vllm", "serve", args.model, "--served-model-name", "nxdi", "--port", str(PORT)]
    server = subprocess.Popen([*command, *lengths])
    try:
        wait_until_ready(server)
        talk(OpenAI(base_url=f"{URL}/v1", api_key="none"))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
