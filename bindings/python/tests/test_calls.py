"""Calls that go wrong or come from where they should not: threads, signals, forks, callbacks, bad input."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from sparrow_llm import Sparrow, errors
from sparrow_llm._native import Engine, Model, Session

PROMPT = "Once upon a time"
LONG = 1_000_000


@pytest.fixture(scope="module")
def model(demo: pathlib.Path) -> Sparrow:
    return Sparrow.from_pretrained(demo, threads=2)


def test_threads_share_a_model(model: Sparrow) -> None:
    expected = model.generate(PROMPT, max_new_tokens=40).text
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(model.generate(PROMPT, max_new_tokens=40).text)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == [expected] * 4


def test_other_threads_run_meanwhile(model: Sparrow) -> None:
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    model.generate(PROMPT, max_new_tokens=300, ignore_eos=True)
    done.set()
    thread.join()
    assert ticks > 20


def test_another_thread_cancels(model: Sparrow) -> None:
    results = []
    thread = threading.Thread(
        target=lambda: results.append(model.generate(PROMPT, max_new_tokens=LONG, ignore_eos=True))
    )
    thread.start()
    time.sleep(0.1)
    model.cancel()
    thread.join(10)
    assert not thread.is_alive() and results[0].finish_reason == "cancelled"
    assert len(results[0].token_ids) < model.context_length
    assert model.generate(PROMPT, max_new_tokens=4).finish_reason == "length"


def test_a_stream_ends_when_it_is_cancelled(model: Sparrow) -> None:
    stream = model.stream(PROMPT, max_new_tokens=LONG, ignore_eos=True)
    next(stream)
    model.cancel()
    *_, last = stream
    assert last.finish_reason == "cancelled"


def test_ctrl_c_ends_generation(demo: pathlib.Path) -> None:
    program = f"""
import os, signal, threading, time
from sparrow_llm import Sparrow
model = Sparrow.from_pretrained({str(demo)!r}, threads=1)
expected = model.generate("Once", max_new_tokens=8).text
def interrupt():
    global sent
    time.sleep(0.1)
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)
for work in [
    lambda: [model.generate("Once", max_new_tokens=1000, ignore_eos=True) for _ in range(100)],
    lambda: [list(model.stream("Once", max_new_tokens=1000, ignore_eos=True)) for _ in range(100)],
    lambda: [model.logits([1] * 500) for _ in range(100)],
    lambda: model.perplexity("Once upon a time. " * 4000),
]:
    threading.Thread(target=interrupt).start()
    try:
        work()
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted" if time.monotonic() - sent < 10 else "late")
    assert model.generate("Once", max_new_tokens=8).text == expected
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.split("\n")[:-1] == ["interrupted"] * 4, run.stderr


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(model: Sparrow) -> None:
    busy = threading.Event()

    def work() -> None:
        while not busy.is_set():
            model.generate(PROMPT, max_new_tokens=20)

    def in_child(call: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                call()
                os._exit(1)
            except errors.ForkError:
                os._exit(0)
            except BaseException:
                os._exit(2)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -1

    model.logits([1])
    calls = [lambda: model.generate(PROMPT), lambda: model.logits([1]), lambda: model.stream(PROMPT), lambda: model.session()]
    assert [in_child(call) for call in calls] == [0, 0, 0, 0]
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert [in_child(lambda: model.generate(PROMPT)) for _ in range(40)] == [0] * 40
    finally:
        busy.set()
        thread.join()


def test_a_callback_cannot_call_its_engine(model: Sparrow) -> None:
    with pytest.raises(errors.ReentrantCallError, match="inside of its own callback"):
        model.generate(PROMPT, callback=lambda chunk: model.generate("again"))
    assert model.generate(PROMPT, max_new_tokens=2).finish_reason == "length"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate([]), errors.OptionError, "prompt: has no tokens"),
        (lambda m: m.generate([5, 99_999]), errors.OptionError, "99999"),
        (lambda m: m.generate([1] * 5000), errors.ContextLengthError, "do not fit the context"),
        (lambda m: m.generate("a", temperature=-1.0), errors.OptionError, "temperature"),
        (lambda m: m.generate("a", top_p=1.5), errors.OptionError, "top_p"),
        (lambda m: m.generate("a", do_sample=True, temperature=0.0), errors.OptionError, "temperature"),
        (lambda m: m.generate("a", max_new_tokens=-1), errors.OptionError, "max_new_tokens"),
        (lambda m: m.generate("a", logprobs=21), errors.OptionError, "top_logprobs"),
        (lambda m: m.generate("a", num_return_sequences=0), errors.OptionError, "num_return_sequences"),
        (lambda m: m.generate([1.5]), errors.OptionError, "whole numbers from 0, found 1.5"),
        (lambda m: m.generate([[1], [-1]]), errors.OptionError, "found -1"),
        (lambda m: m.logits([]), errors.OptionError, "no tokens"),
        (lambda m: m.logits([99_999]), errors.OptionError, "99999"),
        (lambda m: m.score([], "a"), errors.OptionError, "context: must have at least one token"),
        (lambda m: m.score(["a"], ["b", "c"]), errors.OptionError, "continuation"),
        (lambda m: m.perplexity("a", bos=False), errors.OptionError, "text"),
        (lambda m: m.perplexity("a b c d e f", window=1), errors.OptionError, "window"),
    ],
)
def test_bad_input_is_an_error_that_says_what(
    model: Sparrow, call: Callable[[Sparrow], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(model)
    assert model.generate(PROMPT, max_new_tokens=1).finish_reason == "length"


def test_sessions_refuse_what_they_have_not(model: Sparrow) -> None:
    session = model.session()
    for call in [
        lambda: session.prefill(0, [1]),
        lambda: session.truncate(3, 0),
        lambda: session.remove_sequence(0),
        lambda: session.length(0),
        lambda: session.reorder([0, 1]),
    ]:
        with pytest.raises(errors.OptionError, match="sequence"):
            call()
    one, two = session.add_sequence(8), session.add_sequence(8)
    session.prefill(one, [5, 6, 7])
    with pytest.raises(errors.OptionError, match="cannot be cut to 9"):
        session.truncate(one, 9)
    with pytest.raises(errors.OptionError):
        session.decode([(one, 1), (one, 2)])
    with pytest.raises(errors.ContextLengthError):
        session.prefill(one, [1] * 9)
    assert session.tokens(one) == [5, 6, 7] and session.capacity(one) == 8
    session.copy_prefix(one, two, 2)
    assert session.tokens(two) == [5, 6]
    session.reorder([1, 0])
    assert (session.tokens(one), session.tokens(two)) == ([5, 6], [5, 6, 7])


def test_loading_says_what_is_wrong(tmp_path: pathlib.Path, demo: pathlib.Path) -> None:
    with pytest.raises(errors.LoadError) as missing:
        Sparrow.from_pretrained(tmp_path / "nothing")
    assert "nothing" in str(missing.value) and isinstance(missing.value, OSError)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.ConfigError, match="config.json"):
        Sparrow.from_pretrained(tmp_path)
    for options, named in [
        ({"dtype": "int3"}, "dtype"),
        ({"selector": "magic"}, "selector: unknown selector"),
        ({"weights": "cloud"}, "weights"),
        ({"kv_dtype": "int4"}, "kv_dtype"),
    ]:
        with pytest.raises(errors.OptionError, match=named):
            model = Sparrow.from_pretrained(demo, **options)
            model.generate("a")
    with pytest.raises(errors.OptionError):
        Sparrow.from_pretrained(demo, selector="lowrank")
    with pytest.raises(errors.DeviceError, match="cuda"):
        Sparrow.from_pretrained(demo, device="cuda")


def test_progress_of_loading_is_told_and_can_end_it(demo: pathlib.Path) -> None:
    told: list[tuple[str, int, int]] = []
    Sparrow.from_pretrained(demo, dtype="int8", progress=lambda *report: told.append(report))
    assert {stage for stage, _, _ in told} >= {"quantising weights"}
    assert all(0 <= done <= total for _, done, total in told)

    def ends(stage: str, done: int, total: int) -> None:
        raise InterruptedError(stage)

    with pytest.raises(InterruptedError, match="quantising"):
        Sparrow.from_pretrained(demo, dtype="int8", progress=ends)


def test_a_closed_model_says_so(demo: pathlib.Path) -> None:
    with Sparrow.from_pretrained(demo) as model:
        model.generate(PROMPT, max_new_tokens=1)
    for call in [lambda: model.generate(PROMPT), lambda: model.logits([1]), lambda: model.vocab_size]:
        with pytest.raises(errors.ClosedError, match="closed"):
            call()


def test_every_error_of_the_library_has_a_class() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(c, errors.SparrowError) for c in classes)
    assert issubclass(errors.OptionError, ValueError) and issubclass(errors.LoadError, OSError)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc")
def test_calls_leave_nothing_behind(demo: pathlib.Path) -> None:
    model = Sparrow.from_pretrained(demo, threads=2)
    ids = model.encode("a")

    def calls(count: int) -> None:
        for i in range(count):
            model.generate(ids, max_new_tokens=1)
            if i % 4 == 0:
                for wrong in [lambda: model.generate([99_999]), lambda: model.logits([99_999])]:
                    with pytest.raises(errors.OptionError):
                        wrong()
                model.stream(ids).close()

    def counts() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))

    calls(500)
    gc.collect()
    before, resident = counts(), _resident()
    calls(5750)
    gc.collect()
    assert counts() == before
    assert _resident() - resident < 2 << 20


def test_engines_come_and_go(demo: pathlib.Path) -> None:
    loaded = Model.load(str(demo), threads=2)
    tasks = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        Session(Model.load(str(demo), threads=2)).add_sequence(4)
        Engine(loaded)
    assert len(os.listdir("/proc/self/task")) == tasks
