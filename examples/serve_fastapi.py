"""A small web server around ContinuousBatcher: text streams as it comes, leaving cancels.

    pip install fastapi uvicorn
    python examples/serve_fastapi.py MODEL_FOLDER
    curl -N localhost:8000/completions -H 'content-type: application/json' \
        -d '{"prompt": "Once upon a time", "options": {"max_new_tokens": 40}}'

It shows how the batcher fits into a web framework: each handler adds a request and iterates over
it, and all of them share the steps of one model. There is no authentication and no limit on what
waits; put a server made for production in front of the public.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from transformers import AutoTokenizer

from nxdi import AutoModelForCausalLM, NxdiError
from nxdi.generation import ContinuousBatcher, RequestOptions


@dataclass
class CompletionBody:
    """What a client sends."""

    prompt: str
    options: RequestOptions = field(default_factory=RequestOptions)


async def events(batcher: ContinuousBatcher, request_id: int) -> AsyncIterator[str]:
    """The outputs of one request as server-sent events."""
    is_finished = False
    try:
        async for output in batcher.stream(request_id):
            is_finished = output.finish_reason is not None
            event = {"text": output.text, "finish_reason": output.finish_reason}
            yield f"data: {json.dumps(event)}\n\n"
    finally:
        if not is_finished:  # the client has gone
            batcher.cancel(request_id)


def make_app(batcher: ContinuousBatcher) -> FastAPI:
    async def complete(body: CompletionBody) -> StreamingResponse:
        try:
            request_id = batcher.add(body.prompt, body.options)
        except NxdiError as error:
            raise HTTPException(status_code=400, detail=str(error)) from error
        return StreamingResponse(events(batcher, request_id), media_type="text/event-stream")

    app = FastAPI(title="nxdi")
    app.add_api_route("/completions", complete, methods=["POST"], response_model=None)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a model folder over HTTP.")
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8, help="requests that run at once")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(
        args.model,
        seq_len=args.seq_len,
        batch_size=args.rows,
        ctx_batch_size=1,
        enable_bucketing=True,
        torch_dtype="float32",
    )
    batcher = ContinuousBatcher(model, AutoTokenizer.from_pretrained(args.model))
    uvicorn.run(make_app(batcher), port=args.port)


if __name__ == "__main__":
    main()
