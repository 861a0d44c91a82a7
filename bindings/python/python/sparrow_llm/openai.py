"""Results in the dictionaries of OpenAI's completions and chat completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .results import Chunk, Completion, FinishReason, TokenLogprobs
from .streams import Stream

if TYPE_CHECKING:
    from .engine import Sparrow

_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "stop",
}


def completions(model: Sparrow, results: Sequence[Completion]) -> dict[str, Any]:
    """An object `text_completion`."""
    choices = [
        {
            "index": i,
            "text": result.text,
            "logprobs": _completion_logprobs(model, result.logprobs),
            "finish_reason": _REASONS[result.finish_reason],
        }
        for i, result in enumerate(results)
    ]
    return _head(model, "cmpl", "text_completion") | {"choices": choices, "usage": _usage(results)}


def completion_chunks(model: Sparrow, stream: Stream, before: str) -> Iterator[dict[str, Any]]:
    """Objects `text_completion` of a stream; the first has `before` in front."""
    head = _head(model, "cmpl", "text_completion")
    with stream:
        for chunk in stream:
            choice = {
                "index": 0,
                "text": before + chunk.text,
                "logprobs": _completion_logprobs(model, _logprobs(chunk)),
                "finish_reason": _reason(chunk),
            }
            before = ""
            yield head | {"choices": [choice]}


def chat_completion(model: Sparrow, result: Completion) -> dict[str, Any]:
    """An object `chat.completion`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text},
        "logprobs": _chat_logprobs(model, result.logprobs),
        "finish_reason": _REASONS[result.finish_reason],
    }
    return _head(model, "chatcmpl", "chat.completion") | {"choices": [choice], "usage": _usage([result])}


def chat_chunks(model: Sparrow, stream: Stream) -> Iterator[dict[str, Any]]:
    """Objects `chat.completion.chunk` of a stream."""
    head = _head(model, "chatcmpl", "chat.completion.chunk")
    delta: dict[str, str] = {"role": "assistant", "content": ""}
    yield head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
    with stream:
        for chunk in stream:
            choice = {
                "index": 0,
                "delta": {"content": chunk.text} if chunk.text else {},
                "logprobs": _chat_logprobs(model, _logprobs(chunk)),
                "finish_reason": _reason(chunk),
            }
            yield head | {"choices": [choice]}


def _head(model: Sparrow, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
    }


def _usage(results: Sequence[Completion]) -> dict[str, int]:
    prompt = sum(result.prompt_tokens for result in results)
    new = sum(len(result.token_ids) for result in results)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _reason(chunk: Chunk) -> str | None:
    return chunk.finish_reason and _REASONS[chunk.finish_reason]


def _logprobs(chunk: Chunk) -> list[TokenLogprobs] | None:
    return [chunk.logprobs] if chunk.logprobs else None


def _completion_logprobs(model: Sparrow, logprobs: list[TokenLogprobs] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    tokens = [_token(model, entry.token_id) for entry in logprobs]
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [entry.logprob for entry in logprobs],
        "top_logprobs": [{_token(model, id): logprob for id, logprob in entry.top} for entry in logprobs],
        "text_offset": offsets,
    }


def _chat_logprobs(model: Sparrow, logprobs: list[TokenLogprobs] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None

    def token(id: int, logprob: float) -> dict[str, Any]:
        text = _token(model, id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        token(entry.token_id, entry.logprob) | {"top_logprobs": [token(id, logprob) for id, logprob in entry.top]}
        for entry in logprobs
    ]
    return {"content": content}


def _token(model: Sparrow, id: int) -> str:
    return model.decode([id], skip_special_tokens=False)
