"""`Sparrow`: a whole model, without torch."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from . import _native
from .errors import ClosedError, DeviceError, OptionError
from .progress import Progress, Reporting
from .sampling import Sampling, request
from .streams import AsyncStream, Stream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    import numpy as np
    from numpy.typing import NDArray

    # What a dataclass needs takes as long to import as all the rest: it waits until there is a result.
    from .results import Chunk, Completion, Evaluation, Score

Prompt = str | Sequence[int]
"""A text, or the ids of its tokens."""
Messages = str | Sequence[dict[str, Any]]
"""What was said: dictionaries with `role` and `content`, or what a user says first."""


def _default_threads() -> int | None:
    """As many as torch computes with where it is loaded, else what `OMP_NUM_THREADS` says, as Ray's workers have it."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) > 0 else None


class Sparrow:
    """A model that generates, scores and measures text. Threads may share one; their requests run together.

    Made by `Sparrow.from_pretrained`. It pickles as a recipe: what unpickles it loads the model again.
    """

    def __init__(self, model: _native.Model, options: dict[str, Any]) -> None:
        """Of a loaded model; `from_pretrained` is the usual way."""
        self._model: _native.Model | None = model
        self._options = options
        self._kv = {name: options.get(name) for name in ("kv_dtype", "kv_sparsity", "kv_dense_tail", "kv_sinks")}
        self._lock = threading.Lock()
        self._engines: dict[int, _native.Engine] = {}
        self._session: _native.Session | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        selector: str | None = None,
        weights: str | None = None,
        weights_format: str | None = None,
        kv_dtype: str | None = None,
        kv_sparsity: str | float | None = None,
        kv_dense_tail: int | None = None,
        kv_sinks: int | None = None,
        threads: int | None = None,
        device: str | None = None,
        progress: Progress | bool | None = None,
    ) -> Self:
        """Loads a model.

        Args:
            path_or_id: a Hugging Face directory, a GGUF file, or a hub id `org/name[/FILE.gguf][@revision]` (in wheels with the hub).
            dtype: quantises the weights: `int8`, `Q8_0`, `int4`, …; otherwise they stay as they are stored.
            selector: what is computed: `dense`, `gate[:RULE]`, `lowrank`, `sign`, `input`, `skip`; otherwise what the directory was
                sparsified for.
            weights: where they are: `mmap` (default), `ram`, or `cache:FRACTION[,…]`.
            weights_format: which matrices are bitmaps of their non-zero elements: `auto`, `dense`, `bitmap`, or patterns.
            kv_dtype: element type of cached keys and values: `f32`, `f16`, `bf16` or `int8`.
            kv_sparsity: fraction of older keys and values that is dropped: one number, or `k=0.3,v=0.5`.
            kv_dense_tail: last tokens that stay dense in a sparse cache.
            kv_sinks: first tokens that stay dense in a sparse cache.
            threads: otherwise as many as torch has, or `OMP_NUM_THREADS` says, or the system lets this process use.
            device: `cpu`, the only one of this package.
            progress: called as `progress(stage, done, total)`; True and False show and hide a line on stderr.

        Raises:
            LoadError: a file is missing, malformed or not what `config.json` calls for.
            OptionError: an option cannot be used with this model.
        """
        if device not in (None, "cpu"):
            raise DeviceError(f"device: {device!r} is not supported: this package computes on the CPU")
        options = {
            "dtype": dtype,
            "selector": selector,
            "weights": weights,
            "weights_format": weights_format,
            "kv_dtype": kv_dtype,
            "kv_sparsity": None if kv_sparsity is None else str(kv_sparsity),
            "kv_dense_tail": kv_dense_tail,
            "kv_sinks": kv_sinks,
            "threads": threads,
        }
        with Reporting(progress) as report:
            model = _native.Model.load(
                os.fspath(path_or_id),
                dtype=dtype,
                selector=selector,
                weights=weights,
                weights_format=weights_format,
                threads=_default_threads() if threads is None else threads,
                progress=report,
            )
        return cls(model, {"path_or_id": os.fspath(path_or_id), **options})

    # What it is.

    @property
    def model(self) -> _native.Model:
        """The compiled model.

        Raises:
            ClosedError: after `close`.
        """
        if self._model is None:
            raise ClosedError("the model was closed: load it again")
        return self._model

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`, or what a GGUF file has of it."""
        config: dict[str, Any] = json.loads(self.model.config())
        return config

    @property
    def name(self) -> str:
        """The path or id that it was loaded from."""
        return str(self._options["path_or_id"])

    @property
    def vocab_size(self) -> int:
        """Tokens that logits are of."""
        return self.model.vocab_size

    @property
    def context_length(self) -> int:
        """Tokens that a sequence may have."""
        return self.model.context_length

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a text."""
        return self.model.eos_token_ids

    @property
    def threads(self) -> int:
        """Threads that it computes with."""
        return self.model.threads

    @property
    def selector(self) -> str:
        """What is computed."""
        return self.model.selector

    def __repr__(self) -> str:
        if self._model is None:
            return "Sparrow(closed)"
        m = self._model
        return (
            f"Sparrow({self.name!r}: {m.architecture}, {m.num_layers} layers of {m.hidden_size}, "
            f"weights {m.dtype}, selector {m.selector}, {m.threads} threads, {m.isa})"
        )

    def _repr_html_(self) -> str:
        from html import escape

        m = self.model
        rows = {
            "model": self.name,
            "architecture": m.architecture,
            "layers": f"{m.num_layers} of hidden size {m.hidden_size}",
            "vocabulary, context": f"{m.vocab_size}, {m.context_length} tokens",
            "weights": m.dtype,
            "selector": m.selector,
            "runs on": f"{m.threads} threads, {m.isa}",
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
        return f"<table>{cells}</table>"

    # Text and tokens.

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, those included that the tokenizer puts around it."""
        return self.model.encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return self.model.decode(ids, skip_special_tokens)

    # Generation.

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str | list[int],
        *,
        num_return_sequences: Literal[1] = 1,
        echo: bool = False,
        callback: Callable[[Chunk], object] | None = None,
        **options: Unpack[Sampling],
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        num_return_sequences: int = 1,
        echo: bool = False,
        callback: Callable[[Chunk], object] | None = None,
        **options: Unpack[Sampling],
    ) -> list[Completion]: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        num_return_sequences: int = 1,
        echo: bool = False,
        callback: Callable[[Chunk], object] | None = None,
        **options: Unpack[Sampling],
    ) -> Completion | list[Completion]:
        """Continues a prompt, or several that run together.

        Args:
            prompt: a text, or ids of tokens; or a list of these, which gives a list.
            num_return_sequences: texts for each prompt, with seeds that follow each other; more than one gives a list.
            echo: results begin with the prompt.
            callback: called with every `Chunk` as it comes. It must not call this model.
            max_new_tokens: tokens to generate at most, 128 by default. Another name is `max_tokens`.
            do_sample: by default, whether any of the next four is given; what is not said of them is as the model suggests.
            temperature: divides logits; 0 takes the most likely token.
            top_k: keeps the k most likely tokens; 0 keeps all.
            top_p: keeps the most likely tokens that together reach this probability (arXiv 1904.09751).
            min_p: keeps tokens at least this fraction as likely as the most likely one (arXiv 2407.01082).
            repetition_penalty: divides logits of tokens that occurred (arXiv 1909.05858); 1 is off.
            presence_penalty: taken once from logits of tokens in the output, -2 to 2.
            frequency_penalty: taken as often as they occur there, -2 to 2.
            logit_bias: added to logits of ids; -inf forbids a token.
            seed: same seed, same text; random by default, and told in the result.
            stop_strings: texts that end generation and are not part of it. Another name is `stop`.
            stop_token_ids: ids that end it beside those of the model.
            ignore_eos: go on past end-of-sequence tokens.
            logprobs: report log-probabilities, of the chosen token and of so many others, at most 20.

        Raises:
            ContextLengthError: a prompt leaves no room in the context.
            OptionError: an option is out of range.
        """
        prompts, alone = _listed(prompt)
        if num_return_sequences < 1:
            raise OptionError(f"num_return_sequences: must be at least 1, found {num_return_sequences}")
        engine = self._engine()
        submit = request(self._suggested(options), options)
        seeds = [submit["seed"] + i for i in range(num_return_sequences)]
        requests: list[int] = []
        try:
            for ids in self._ids_of(prompts):
                requests += [engine.submit(ids, **(submit | {"seed": seed})) for seed in seeds]
            outcomes = engine.run(requests, _told(callback))
        except BaseException:
            for number in requests:
                engine.end(number)
            raise
        from .results import Chunk, completion

        befores = [self._text(p) if echo else "" for p in prompts]
        results = [
            completion(outcome, seeds[i % len(seeds)], befores[i // len(seeds)])
            for i, outcome in enumerate(outcomes)
        ]
        if callback:
            for i, (result, outcome) in enumerate(zip(results, outcomes, strict=True)):
                callback(Chunk(outcome.rest, i, finish_reason=result.finish_reason, completion=result))
        return results[0] if alone and num_return_sequences == 1 else results

    __call__ = generate

    def stream(self, prompt: Prompt, **options: Unpack[Sampling]) -> Stream:
        """Continues a prompt, piece by piece: an iterator of `Chunk`. Closing it, or leaving its `with`, gives the rest up.

        Options are those of `generate`.
        """
        return self._stream(self._engine(), self._ids(prompt), request(self._suggested(options), options))

    def astream(self, prompt: Prompt, **options: Unpack[Sampling]) -> AsyncIterator[Chunk]:
        """As `stream`, for `async for`: steps run in a thread, so that the event loop goes on."""
        return AsyncStream(self.stream(prompt, **options))

    # Conversations.

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        template_variables: dict[str, Any] | None = None,
        callback: Callable[[Chunk], object] | None = None,
        **options: Unpack[Sampling],
    ) -> Completion:
        """The model's answer in a conversation. What is not said of sampling is as the model suggests.

        Args:
            messages: dictionaries with `role` and `content`, or what the user says first.
            tools: schemas of functions that the model may call.
            chat_template: a Jinja file, instead of the model's own template.
            template_variables: more that the template reads, such as `enable_thinking`.
            callback: called with every `Chunk` as it comes.

        Raises:
            TemplateError: there is no template, or it refuses the conversation.
        """
        engine, ids, submit = self._chat_request(messages, tools, chat_template, template_variables, options)
        number = engine.submit(ids, **submit)
        (outcome,) = engine.run([number], _told(callback))
        from .results import Chunk, completion

        result = completion(outcome, submit["seed"])
        if callback:
            callback(Chunk(outcome.rest, finish_reason=result.finish_reason, completion=result))
        return result

    def chat_stream(
        self,
        messages: Messages,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        template_variables: dict[str, Any] | None = None,
        **options: Unpack[Sampling],
    ) -> Stream:
        """As `chat`, piece by piece."""
        engine, ids, submit = self._chat_request(messages, tools, chat_template, template_variables, options)
        return self._stream(engine, ids, submit)

    def create_completion(
        self, prompt: Prompt | Sequence[Prompt], *, stream: bool = False, echo: bool = False, **options: Unpack[Sampling]
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """As `generate`, or `stream` of one prompt, in the dictionaries of OpenAI's completions."""
        from . import openai

        prompts, alone = _listed(prompt)
        if not stream:
            results = self.generate(prompts, echo=echo, **options)
            return openai.completions(self, results)
        if not alone:
            raise OptionError("prompt: one prompt can be streamed at a time")
        before = self._text(prompts[0]) if echo else ""
        return openai.completion_chunks(self, self.stream(prompts[0], **options), before)

    def create_chat_completion(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        **options: Unpack[Sampling],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """As `chat`, or `chat_stream`, in the dictionaries of OpenAI's chat completions."""
        from . import openai

        if stream:
            return openai.chat_chunks(self, self.chat_stream(messages, tools=tools, **options))
        return openai.chat_completion(self, self.chat(messages, tools=tools, **options))

    # Measuring.

    def logits(self, ids: Sequence[int], *, last: bool = False) -> NDArray[np.float32]:
        """Logits after each token, `[len(ids), vocab_size]`, or after the last one, `[vocab_size]`.

        Raises:
            ContextLengthError: there are more tokens than the context has room for.
        """
        import numpy as np

        ids = _checked(ids)
        with self._sequence(len(ids)) as (session, sequence):
            if last:
                return np.frombuffer(session.prefill(sequence, ids), np.float32)
            return np.frombuffer(session.prefill_all(sequence, ids), np.float32).reshape(len(ids), -1)

    @overload
    def score(  # type: ignore[overload-overlap]
        self, context: str | list[int], continuation: Prompt
    ) -> Score: ...
    @overload
    def score(self, context: Sequence[Prompt], continuation: Sequence[Prompt]) -> list[Score]: ...
    def score(
        self, context: Prompt | Sequence[Prompt], continuation: Prompt | Sequence[Prompt]
    ) -> Score | list[Score]:
        """How likely a continuation is after a context. Texts are encoded apart; lists of the same length give a list.

        Raises:
            OptionError: a context has no tokens.
        """
        listed, alone = _listed(context)
        contexts = self._ids_of(listed)
        continuations = self._ids_of(_listed(continuation)[0], add_special_tokens=False)
        if len(contexts) != len(continuations):
            message = f"continuation: {len(continuations)} for {len(contexts)} contexts"
            raise OptionError(message)
        from .results import Score

        scores = []
        for before, after in zip(contexts, continuations, strict=True):
            # The last token is predicted, and not appended.
            with self._sequence(len(before) + max(len(after) - 1, 0)) as (session, sequence):
                each = session.score(sequence, before, after)
            logprobs = [logprob for logprob, _ in each]
            scores.append(Score(sum(logprobs), all(greedy for _, greedy in each), logprobs))
        return scores[0] if alone else scores

    def perplexity(
        self,
        text: str,
        *,
        window: int = 256,
        bos: bool = True,
        max_tokens: int | None = None,
        reference: Sparrow | None = None,
        progress: Progress | bool | None = None,
    ) -> Evaluation:
        """Perplexity of a text, and KL divergence from and agreement with `reference`: by default the model itself, dense and as it is
        stored. Windows are scored one by one, as `sparrow eval` does.

        Args:
            text: what is predicted.
            window: tokens of a window, the beginning-of-sequence token included.
            bos: windows begin with the beginning-of-sequence token, where the tokenizer adds one.
            max_tokens: of the text.
            reference: another model with the same tokenizer.
            progress: as in `from_pretrained`.
        """
        with Reporting(progress) as report:
            found = _native.evaluate(
                self.model,
                text,
                reference=reference.model if reference else None,
                window=window,
                bos=bos,
                max_tokens=max_tokens,
                progress=report,
                **self._kv,
            )
        from .results import Evaluation

        return Evaluation(**json.loads(found))

    def bench(self, *, prompt_tokens: int = 128, new_tokens: int = 64, runs: int = 5) -> dict[str, float]:
        """Speed at a prompt of random tokens, medians of `runs` after one that warms up: tokens per second of the prompt and of
        decoding, seconds to the first token, active fraction."""
        import random
        from statistics import median

        rng = random.Random(0)
        ids = [rng.randrange(self.vocab_size) for _ in range(prompt_tokens)]
        texts = [
            self.generate(ids, max_new_tokens=new_tokens, ignore_eos=True, do_sample=False) for _ in range(runs + 1)
        ][1:]
        return {
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "runs": runs,
            "prompt_tokens_per_second": median(t.timings.prompt_tokens_per_second for t in texts),
            "decode_tokens_per_second": median(t.timings.decode_tokens_per_second for t in texts),
            "time_to_first_token": median(t.timings.time_to_first_token or 0.0 for t in texts),
            "active_fraction": median(t.active_fraction for t in texts),
        }

    def profile(self, *, prompt_tokens: int = 128, new_tokens: int = 32) -> dict[str, dict[str, float]]:
        """Seconds of a decoded token by component: mean, standard deviation, minimum, maximum."""
        ids = [i % self.vocab_size for i in range(prompt_tokens)]
        session = self.session()
        sequence = session.add_sequence(prompt_tokens + new_tokens)
        session.prefill(sequence, ids)
        session.start_profile()
        for i in range(new_tokens):
            session.decode([(sequence, i % self.vocab_size)])
        return {
            name: dict(zip(("mean", "std", "min", "max"), figures, strict=True)) for name, figures in session.profile()
        }

    def session(self) -> _native.Session:
        """A session of its own: sequences that the caller advances. What drop-ins for other libraries are made of."""
        return _native.Session(self.model, **self._kv)

    # Ending.

    def cancel(self) -> None:
        """Ends all that other threads generate, with `finish_reason` `cancelled`; what they measure raises `Cancelled`."""
        with self._lock:
            running: list[Any] = [*self._engines.values(), self._session]
        for engine in running:
            if engine:
                engine.cancel()

    def close(self) -> None:
        """Gives up the model's memory once nothing runs any more; calls from here on raise `ClosedError`."""
        self.cancel()
        with self._lock:
            self._model, self._session = None, None
            self._engines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Sparrow], tuple[dict[str, Any]]]:
        return _load, (self._options,)

    # Inside.

    def _engine(self, kept: int = 0) -> _native.Engine:
        """What serves requests; `kept` sequences of ended ones stay, for those that begin alike."""
        with self._lock:
            if kept not in self._engines:
                self._engines[kept] = _native.Engine(self.model, kept=kept, **self._kv)
            return self._engines[kept]

    def _sequence(self, capacity: int) -> _Sequence:
        with self._lock:
            if self._session is None:
                self._session = self.session()
            return _Sequence(self._session, capacity)

    def _stream(self, engine: _native.Engine, ids: Sequence[int], submit: dict[str, Any]) -> Stream:
        return Stream(engine, engine.submit(ids, **submit), submit["seed"])

    def _suggested(self, options: Sampling) -> dict[str, Any]:
        """What the model suggests, for a caller that asks for sampling: a prompt is continued greedily otherwise."""
        asked = options.get("do_sample") or any(options.get(name) is not None for name in ("top_k", "top_p", "min_p"))
        suggested = self.model.suggested_sampling() if asked else {}
        suggested.pop("repetition_penalty", None)
        return suggested

    def _chat_request(
        self,
        messages: Messages,
        tools: Sequence[dict[str, Any]] | None,
        chat_template: str | os.PathLike[str] | None,
        variables: dict[str, Any] | None,
        options: Sampling,
    ) -> tuple[_native.Engine, list[int], dict[str, Any]]:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids, end_token, end_text = self.model.chat_prompt(
            json.dumps(list(messages)),
            None if tools is None else json.dumps(list(tools)),
            None if chat_template is None else os.fspath(chat_template),
            None if variables is None else json.dumps(variables),
        )
        submit = request(self.model.suggested_sampling(), options)
        submit["stop_token_ids"] += [] if end_token is None else [end_token]
        submit["stop"] += [] if end_text is None else [end_text]
        return self._engine(kept=1), ids, submit

    def _ids(self, prompt: Prompt, add_special_tokens: bool = True) -> Sequence[int]:
        return self.model.encode(prompt, add_special_tokens) if isinstance(prompt, str) else prompt

    def _text(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self.decode(prompt)

    def _ids_of(self, prompts: Sequence[Prompt], add_special_tokens: bool = True) -> list[Sequence[int]]:
        return [self._ids(prompt, add_special_tokens) for prompt in prompts]


def _listed(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """One prompt or several as a list, and whether it was one. Arrays and tensors are lists of ids."""
    if isinstance(prompt, str):
        return [prompt], True
    entries: list[Any] = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
    if any(isinstance(entry, str | Sequence) or hasattr(entry, "tolist") for entry in entries):
        return [entry if isinstance(entry, str) else _checked(entry) for entry in entries], False
    return [_checked(entries)], True


def _checked(ids: Any) -> list[int]:
    """Ids as whole numbers."""
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    wrong = [id for id in ids if not isinstance(id, int) or not 0 <= id < 1 << 32]
    if wrong:
        raise OptionError(f"prompt: ids of tokens are whole numbers from 0, found {wrong[0]!r}")
    return cast("list[int]", ids)


class _Sequence:
    """A sequence of a session, for as long as it is used."""

    def __init__(self, session: _native.Session, capacity: int) -> None:
        self.session, self.capacity = session, max(capacity, 1)

    def __enter__(self) -> tuple[_native.Session, int]:
        self.sequence = self.session.add_sequence(self.capacity)
        return self.session, self.sequence

    def __exit__(self, *_: object) -> None:
        self.session.remove_sequence(self.sequence)


def _told(callback: Callable[[Chunk], object] | None) -> Callable[[int, _native.Token], object] | None:
    if callback is None:
        return None
    from .results import Chunk, token_logprobs

    def tell(index: int, token: _native.Token) -> None:
        callback(Chunk(token.text, index, token.id, token_logprobs(token)))

    return tell


def _load(options: dict[str, Any]) -> Sparrow:
    """What a pickled model becomes."""
    return Sparrow.from_pretrained(**options)
