"""Texts piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from . import _native

if TYPE_CHECKING:
    from typing_extensions import Self

    from .results import Chunk, Completion


T = TypeVar("T")


class Stream(Iterator["Chunk"]):
    """Chunks of a text as they come. Closing it gives the rest of the text up; so does leaving its `with`, or dropping it."""

    def __init__(self, engine: _native.Engine, request: int, seed: int) -> None:
        self._engine = engine
        self._request: int | None = request
        self._seed = seed
        self._chunks: deque[Chunk] = deque()
        self.completion: Completion | None = None
        """All of the text, once it has ended."""

    def __next__(self) -> Chunk:
        while not self._chunks:
            if self._request is None:
                raise StopIteration
            try:
                tokens, outcome = self._engine.step(self._request)
            except BaseException:
                self._request = None
                raise
            from .results import Chunk, completion, token_logprobs

            self._chunks += [Chunk(t.text, 0, t.id, token_logprobs(t)) for t in tokens]
            if outcome:
                self._request = None
                self.completion = completion(outcome, self._seed)
                last = Chunk(
                    outcome.rest, finish_reason=self.completion.finish_reason, completion=self.completion
                )
                self._chunks.append(last)
        return self._chunks.popleft()

    def close(self) -> None:
        """Gives up the rest of the text."""
        request, self._request = self._request, None
        self._chunks.clear()
        if request is not None:
            self._engine.end(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # a forked child has no engine to tell
            pass


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    # Imported here: it takes as long as the rest of the package.
    import asyncio

    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


class AsyncStream(AsyncIterator["Chunk"]):
    """A `Stream` whose steps run in a thread of the event loop's executor."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __anext__(self) -> Chunk:
        chunk: Chunk | None = await _in_thread(next, self._stream, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Gives up the rest of the text."""
        await _in_thread(self._stream.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
