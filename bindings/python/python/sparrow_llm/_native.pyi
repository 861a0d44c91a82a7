"""The compiled part. Private: `sparrow_llm` is the face of it."""

from collections.abc import Callable, Sequence
from typing import Any, final

__all__ = [
    "Engine",
    "Outcome",
    "Token",
    "Model",
    "default_threads",
    "isa",
    "Session",
    "evaluate",
    "prune",
    "quantize",
    "sparsify",
    "operator_threads",
    "register_operators",
    "set_operator_threads",
    "__version__",
]

__version__: str

_Progress = Callable[[str, int, int], None]

def isa() -> str: ...
def default_threads() -> int: ...

@final
class Model:
    """A model that is ready to run, and its tokenizer."""

    @staticmethod
    def load(
        source: str,
        *,
        dtype: str | None = None,
        selector: str | None = None,
        weights: str | None = None,
        weights_format: str | None = None,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> Model: ...
    @property
    def directory(self) -> str | None: ...
    @property
    def architecture(self) -> str: ...
    @property
    def selector(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def has_tokenizer(self) -> bool: ...
    def config(self) -> str: ...
    def suggested_sampling(self) -> dict[str, Any]: ...
    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...
    def token(self, id: int) -> str | None: ...
    def chat_prompt(
        self,
        messages: str,
        tools: str | None = None,
        template: str | None = None,
        variables: str | None = None,
    ) -> tuple[list[int], int | None, str | None]: ...

@final
class Session:
    """Sequences of a model, advanced by the caller. Calls of several threads take turns."""

    def __new__(
        cls,
        model: Model,
        *,
        kv_dtype: str | None = None,
        kv_sparsity: str | None = None,
        kv_dense_tail: int | None = None,
        kv_sinks: int | None = None,
    ) -> Session: ...
    def add_sequence(self, capacity: int) -> int: ...
    def remove_sequence(self, sequence: int) -> None: ...
    def grow(self, sequence: int, capacity: int) -> None: ...
    def length(self, sequence: int) -> int: ...
    def capacity(self, sequence: int) -> int: ...
    def tokens(self, sequence: int) -> list[int]: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def copy_prefix(self, source: int, target: int, length: int) -> None: ...
    def reorder(self, order: Sequence[int]) -> None: ...
    # Logits are float32, row-major, in memory that numpy.frombuffer and torch.frombuffer take as it is.
    def prefill(self, sequence: int, ids: Sequence[int]) -> bytearray: ...  # [vocab]: after the last id
    def prefill_all(self, sequence: int, ids: Sequence[int]) -> bytearray: ...  # [ids, vocab]
    def decode(self, tokens: Sequence[tuple[int, int]]) -> bytearray: ...  # (sequence, id) -> [tokens, vocab]
    # Log-probability of each token of the continuation, and whether it was the most likely one. The last is not appended.
    def score(
        self, sequence: int, context: Sequence[int], continuation: Sequence[int]
    ) -> list[tuple[float, bool]]: ...
    def reset_stats(self) -> None: ...
    def active_fraction(self) -> float: ...
    def start_profile(self) -> None: ...
    # Component, and mean, standard deviation, minimum, maximum of its seconds per call.
    def profile(self) -> list[tuple[str, list[float]]]: ...
    def cancel(self) -> None: ...

@final
class Token:
    @property
    def id(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def logprob(self) -> float | None: ...
    @property
    def top(self) -> list[tuple[int, float]] | None: ...

@final
class Outcome:
    @property
    def tokens(self) -> list[Token]: ...
    @property
    def text(self) -> str: ...
    @property
    def rest(self) -> str: ...
    @property
    def finish(self) -> str: ...
    @property
    def stop(self) -> str | None: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def new_tokens(self) -> int: ...
    @property
    def time_to_first_token(self) -> float | None: ...
    @property
    def decode_time(self) -> float: ...
    @property
    def active_fraction(self) -> float: ...

@final
class Engine:
    """Serves requests of a model together, also those of several threads."""

    def __new__(
        cls,
        model: Model,
        *,
        kv_dtype: str | None = None,
        kv_sparsity: str | None = None,
        kv_dense_tail: int | None = None,
        kv_sinks: int | None = None,
        kept: int = 0,
    ) -> Engine: ...
    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Sequence[tuple[int, float]] = ...,
        seed: int = 0,
        stop: Sequence[str] = ...,
        stop_token_ids: Sequence[int] = ...,
        ignore_eos: bool = False,
        logprobs: int | None = None,
    ) -> int: ...
    def step(self, request: int) -> tuple[list[Token], Outcome | None]: ...
    def run(
        self, requests: Sequence[int], callback: Callable[[int, Token], object] | None = None
    ) -> list[Outcome]: ...
    def end(self, request: int) -> None: ...
    def cancel(self) -> None: ...

def sparsify(
    model: str,
    output: str,
    *,
    selector: str,
    text: str,
    recall: float | None = None,
    target_active: float | None = None,
    target_ppl: float | None = None,
    target_kl: float | None = None,
    rank: float = 0.04,
    look_ahead: bool = False,
    epochs: int = 0,
    window: int = 256,
    bos: bool = True,
    max_tokens: int = 65_536,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> str: ...
def prune(
    model: str,
    output: str,
    *,
    method: str,
    text: str,
    sparsity: float | None = None,
    pattern: str | None = None,
    allocation: str = "uniform",
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    window: int = 256,
    bos: bool = True,
    max_tokens: int = 65_536,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> str: ...
def quantize(
    model: str,
    output: str,
    *,
    method: str,
    text: str,
    bits: int = 4,
    average_bits: float | None = None,
    group: int | None = None,
    along: str = "input",
    zero_points: bool = False,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    window: int = 256,
    bos: bool = True,
    max_tokens: int = 65_536,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> str: ...
def evaluate(
    model: Model,
    text: str,
    *,
    reference: Model | None = None,
    window: int = 256,
    bos: bool = True,
    max_tokens: int | None = None,
    kv_dtype: str | None = None,
    kv_sparsity: str | None = None,
    kv_dense_tail: int | None = None,
    kv_sinks: int | None = None,
    progress: _Progress | None = None,
) -> str: ...
def register_operators(path: str) -> None: ...
def operator_threads() -> int: ...
def set_operator_threads(threads: int) -> None: ...
