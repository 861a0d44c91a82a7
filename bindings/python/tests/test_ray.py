"""Sparrow on Ray: the HTTP interface by itself, then replicas and batch jobs on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparrow_llm import Sparrow
from sparrow_llm.errors import OptionError
from sparrow_llm.ray import CompletionServer, Generator, app
from sparrow_llm.ray.http import events
from starlette.requests import Request
from starlette.testclient import TestClient

pytestmark = pytest.mark.ray

PROMPT = "Once upon a time"
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def talking(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a chat template."""
    directory = tmp_path_factory.mktemp("talking")
    for file in demo.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return directory


@pytest.fixture(scope="module")
def server(talking: Path) -> CompletionServer:
    return CompletionServer(str(talking), threads=1)


@pytest.fixture(scope="module")
def client(server: CompletionServer) -> Iterator[TestClient]:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        response = await server(Request(scope, receive))
        await response(scope, receive, send)

    with TestClient(asgi) as client:
        yield client


def objects(text: str) -> list[dict[str, Any]]:
    """What server-sent events carry."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_completions(server: CompletionServer, client: TestClient) -> None:
    body = {"model": "any", "prompt": PROMPT, "max_tokens": 12, "n": 1, "user": "somebody"}
    answer = client.post("/v1/completions", json=body).json()
    expected = server.model.generate(PROMPT, max_new_tokens=12)
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"] == expected.text
    assert answer["usage"]["completion_tokens"] == 12
    response = client.post("/v1/completions", json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = objects(response.text)
    assert len(chunks) > 5 and "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected.text
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    several = {
        "prompt": [PROMPT, "Tom"],
        "max_tokens": 4,
        "logprobs": 2,
        "echo": True,
        "logit_bias": {"5": -100},
    }
    choices = client.post("/v1/completions", json=several).json()["choices"]
    assert [
        choice["text"].startswith(prompt) for choice, prompt in zip(choices, [PROMPT, "Tom"], strict=True)
    ]
    assert len(choices[1]["logprobs"]["token_logprobs"]) == 4


def test_chat_completions(server: CompletionServer, client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_completion_tokens": 12, "temperature": 0}
    answer = client.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 3}).json()
    expected = server.model.chat(PROMPT, max_new_tokens=12, temperature=0)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 3
    chunks = objects(client.post("/v1/chat/completions", json={**body, "stream": True}).text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == expected.text and chunks[0]["choices"][0]["delta"]["role"] == "assistant"


def test_models_and_health(server: CompletionServer, client: TestClient) -> None:
    server.check_health()
    assert client.get("/v1/models").json()["data"] == [{"id": server.model.name, "object": "model"}]


BAD: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/v1/completions", {}, 400, "prompt: missing"),
    ("POST", "/v1/completions", {"prompt": "a", "beams": 3}, 400, "beams: unknown field"),
    ("POST", "/v1/completions", {"prompt": "a", "n": 2}, 400, "one choice"),
    ("POST", "/v1/completions", {"prompt": "a", "top_p": 7}, 400, "top_p"),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": "many"}, 400, "max_new_tokens"),
    ("POST", "/v1/completions", {"prompt": "a " * 600}, 400, "context"),
    ("POST", "/v1/completions", {"prompt": ["a", "b"], "stream": True}, 400, "one prompt"),
    ("POST", "/v1/completions", {"prompt": "a", "logit_bias": {"five": 1}}, 400, "logit_bias"),
    ("POST", "/v1/completions", [1], 400, "JSON object"),
    ("POST", "/v1/chat/completions", {"messages": "hello"}, 400, "messages: expected a list"),
    ("GET", "/v1/completions", None, 405, "takes POST"),
    ("POST", "/v1/embeddings", {}, 404, "there is no /v1/embeddings"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "message"), BAD)
def test_bad_requests_are_answered(
    client: TestClient, method: str, path: str, body: Any, status: int, message: str
) -> None:
    response = client.request(method, path, json=body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    broken = client.post("/v1/completions", content=b"{")
    assert broken.status_code == 400 and "no JSON" in broken.json()["error"]["message"]


def test_a_reader_that_goes_away_ends_generation(server: CompletionServer) -> None:
    closed = []

    def endless() -> Iterator[dict[str, Any]]:
        try:
            while True:
                yield {}
        finally:
            closed.append(True)

    async def read_two() -> None:
        stream = events(endless())
        assert await anext(stream) == "data: {}\n\n"
        await stream.aclose()  # type: ignore[attr-defined]
        task = asyncio.ensure_future(anext(events(endless())))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(read_two())
    assert closed == [True, True]


def test_generator(demo: Path) -> None:
    generate = Generator(demo, output="story", generation={"max_new_tokens": 6}, load={"threads": 1})
    batch = generate({"prompt": np.array([PROMPT, "Tom"], dtype=object), "number": np.array([1, 2])})
    expected = Sparrow.from_pretrained(demo, threads=1).generate([PROMPT, "Tom"], max_new_tokens=6)
    assert batch["story"].tolist() == [result.text for result in expected]
    assert batch["story_tokens"].tolist() == [6, 6] and batch["number"].tolist() == [1, 2]
    assert batch["story_finish_reason"].tolist() == ["length", "length"]


@pytest.mark.parametrize("args", [{}, {"model": "m", "threads": "two"}, {"model": "m", "num_replicas": 0}])
def test_applications_want_sensible_arguments(args: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        app(args)


@pytest.mark.parametrize("example", ["ray_batch.py", "ray_serve.py"])
def test_examples(demo: Path, tmp_path: Path, example: str) -> None:
    file = Path(__file__).parents[1] / "examples" / example
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers import what this process imports.
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, str(file), str(demo)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    engine = Sparrow.from_pretrained(demo, threads=1)
    if example == "ray_batch.py":
        expected = engine.generate("One day, Lily went to the", max_new_tokens=24)
        assert f"One day, Lily went to the{expected.text} [24 tokens, length]" in run.stdout
        assert run.stdout.count("tokens,") == 8
    else:
        assert engine.generate(PROMPT, max_new_tokens=24).text in run.stdout
