"""OpenAI's completions and chat completions over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sparrow_llm.engine import Sparrow
from sparrow_llm.errors import InternalError, SparrowError

T = TypeVar("T")

SAMPLING = (
    "frequency_penalty",
    "ignore_eos",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
)
# What clients send that changes nothing here.
IGNORED = ("model", "user", "n", "stream", "stream_options", "store", "metadata")


class RequestError(ValueError):
    """A request that cannot be answered; `status` is HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class CompletionServer:
    """A model that answers HTTP requests: what a replica of Ray Serve is.

    It has `POST /v1/completions` and `POST /v1/chat/completions`, with `"stream": true` as server-sent
    events, and `GET /v1/models`. Besides OpenAI's fields it takes `top_k`, `min_p`, `repetition_penalty`,
    `stop_token_ids` and `ignore_eos`. Requests that run at the same time share the model's steps.

    Args:
        model: A directory, a GGUF file or a hub id.
        options: Those of `Sparrow.from_pretrained`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self.model = Sparrow.from_pretrained(model, **options)

    def check_health(self) -> None:
        """What Ray Serve asks now and then.

        Raises:
            ClosedError: The model was closed.
        """
        _ = self.model.model

    async def __call__(self, request: Request) -> Response:
        """Answers a request; errors are answers too, in OpenAI's form."""
        try:
            return await self.answer(request)
        except RequestError as error:
            return failure(str(error), error.status)
        except InternalError as error:
            return failure(str(error), 500)
        except (SparrowError, TypeError) as error:
            return failure(str(error), 400)

    async def answer(self, request: Request) -> Response:
        """The answer to a request that can be answered."""
        path = request.url.path.rstrip("/")
        if path.endswith("/v1/models"):
            return JSONResponse({"object": "list", "data": [{"id": self.model.name, "object": "model"}]})
        calls: dict[str, Callable[[dict[str, Any]], Callable[[], Any]]] = {
            "/v1/completions": self.completion,
            "/v1/chat/completions": self.chat_completion,
        }
        call = next((call for end, call in calls.items() if path.endswith(end)), None)
        if call is None:
            raise RequestError(
                f"there is no {path}: use /v1/completions, /v1/chat/completions or /v1/models", 404
            )
        if request.method != "POST":
            raise RequestError(f"{path} takes POST, found {request.method}", 405)
        try:
            body = json.loads(await request.body())
        except ValueError as error:
            raise RequestError(f"the request is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise RequestError(f"the request must be a JSON object, found a {type(body).__name__}")
        if body.get("n") not in (None, 1):
            raise RequestError(f"n: one choice is given for each prompt, found {body['n']}")
        found = await in_thread(call(body))
        if body.get("stream"):
            return StreamingResponse(events(found), media_type="text/event-stream")
        return JSONResponse(found)

    def completion(self, body: dict[str, Any]) -> Callable[[], Any]:
        """What computes a completion."""
        options = sampling(body, ("prompt", "echo", "logprobs"))
        if "prompt" not in body:
            raise RequestError("prompt: missing")
        for name in ("echo", "logprobs"):
            if body.get(name) is not None:
                options[name] = body[name]
        return partial(
            self.model.create_completion, body["prompt"], stream=bool(body.get("stream")), **options
        )

    def chat_completion(self, body: dict[str, Any]) -> Callable[[], Any]:
        """What computes a chat completion."""
        known = ("messages", "tools", "logprobs", "top_logprobs", "max_completion_tokens")
        options = sampling(body, known)
        if not isinstance(body.get("messages"), list):
            raise RequestError("messages: expected a list")
        if body.get("max_completion_tokens") is not None:
            options["max_new_tokens"] = body["max_completion_tokens"]
        if body.get("logprobs"):
            options["logprobs"] = body.get("top_logprobs") or 0
        call = partial(self.model.create_chat_completion, body["messages"], stream=bool(body.get("stream")))
        return partial(call, tools=body.get("tools"), **options)


def sampling(body: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """The options of generation in a request.

    Raises:
        RequestError: It has a field that is not known.
    """
    unknown = set(body) - {*SAMPLING, *IGNORED, *known, "logit_bias"}
    if unknown:
        raise RequestError(f"{min(unknown)}: unknown field")
    options = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    if bias := body.get("logit_bias"):
        options["logit_bias"] = {int(token): value for token, value in bias.items()}
    return options


async def events(objects: Iterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Objects as server-sent events. A reader that goes away gives the rest up."""
    step: asyncio.Future[dict[str, Any] | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(in_thread(partial(next, objects, None)))
            found = await asyncio.shield(step)
            if found is None:
                break
            yield f"data: {json.dumps(found)}\n\n"
        yield "data: [DONE]\n\n"
    except (SparrowError, TypeError) as error:
        yield f"data: {json.dumps(described(str(error), 500))}\n\n"
    finally:
        # A thread is in the iterator until its step ends.
        if step is not None:
            await asyncio.wait([step])
        objects.close()  # type: ignore[attr-defined]


async def in_thread(call: Callable[[], T]) -> T:
    """What a call gives, while the event loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, call)


def failure(message: str, status: int) -> Response:
    """An error as OpenAI's clients expect it."""
    return JSONResponse(described(message, status), status_code=status)


def described(message: str, status: int) -> dict[str, Any]:
    """Its JSON."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
