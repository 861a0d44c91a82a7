"""Operators over a long time, in several threads and after a fork. Each test has a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.torch

BEGIN = """
    import gc, os, threading, torch
    from sparrow_llm import errors, ops
    x, w, b = torch.randn(3, 64), torch.randn(100, 64), torch.randn(100)
    q, scale = ops.quantize_int8(w)
    packed = ops.pack(w)
    x16, w16 = x.bfloat16(), w.bfloat16()
"""


def run(code: str, seconds: float = 120) -> str:
    program = textwrap.dedent(BEGIN) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_leaks() -> None:
    """10 000 calls, a third of them errors: memory, threads and descriptors stay."""
    out = run(
        """
        def calls(n):
            for i in range(n):
                ops.dense_linear(x, w, b)
                ops.dense_linear(x16, w16)
                ops.int8_linear(x, q, scale, b)
                ops.int8_linear(x, q.contiguous(), scale.contiguous())
                ops.sparse_linear(x, packed, b)
                ops.pack(w)
                for wrong in (lambda: ops.dense_linear(x, w16), lambda: ops.sparse_linear(x[:, :-1], packed),
                              lambda: ops.int8_linear(x, q, scale[:-1])):
                    try:
                        wrong()
                        raise SystemExit("no error")
                    except errors.SparrowError:
                        pass

        def state():
            gc.collect()
            status = open("/proc/self/status").read().split()
            pages = int(open("/proc/self/statm").read().split()[1])
            return pages * os.sysconf("SC_PAGESIZE"), status[status.index("Threads:") + 1], len(os.listdir("/proc/self/fd"))

        calls(300)
        before = state()
        calls(1200)
        after = state()
        print(after[0] - before[0], before[1:] == after[1:])
        """
    )
    growth, rest = out.split()
    assert int(growth) < 1 << 20 and rest == "True"


def test_forked_children_compute_while_a_thread_of_the_parent_does() -> None:
    """A child has none of its parent's threads, so it starts its own."""
    run(
        """
        x, w = torch.randn(4, 512), torch.randn(512, 512)
        ops.set_num_threads(2)
        expected = ops.dense_linear(x, w)
        stop = False

        def work():
            while not stop:
                ops.dense_linear(x, w)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if torch.equal(ops.dense_linear(x, w), expected) else 1)
            deadline = __import__("time").monotonic() + 20
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if __import__("time").monotonic() > deadline:
                    os.kill(pid, 9)
                    os._exit(3)
            assert ops.get_num_threads() == 2
        stop = True
        thread.join()
        """
    )


def test_threads_take_turns_and_other_python_threads_run() -> None:
    out = run(
        """
        x, w = torch.randn(16, 1024), torch.randn(1024, 1024)
        expected = ops.dense_linear(x, w)
        wrong = []

        def work():
            for _ in range(50):
                if not torch.equal(ops.dense_linear(x, w), expected):
                    wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(len(wrong))
        """
    )
    assert out.split() == ["0"]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    out = run(
        """
        assert ops.get_num_threads() == torch.get_num_threads()
        x, w = torch.randn(16, 1024), torch.randn(1024, 1024)
        results = []
        for threads in (1, 2, 3, 1, 2):
            ops.set_num_threads(threads)
            assert ops.get_num_threads() == threads
            results.append(ops.dense_linear(x, w))
        status = open("/proc/self/status").read().split()
        print(all(torch.equal(r, results[0]) for r in results), status[status.index("Threads:") + 1])
        before = status[status.index("Threads:") + 1]
        for threads in (1, 2, 3) * 5:
            ops.set_num_threads(threads)
            ops.dense_linear(x, w)
        status = open("/proc/self/status").read().split()
        print(before == status[status.index("Threads:") + 1])
        """
    )
    assert out.split()[0] == "True" and out.split()[2] == "True"


def test_an_unknown_tier_is_an_option_error() -> None:
    run(
        """
        import subprocess, sys
        code = "import torch\\nfrom sparrow_llm import ops, errors\\n"
        code += "try: ops.dense_linear(torch.ones(1, 2), torch.ones(3, 2))\\n"
        code += "except errors.OptionError as e: print(e)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env={**os.environ, "SPARROW_ISA": "mmx"})
        assert "SPARROW_ISA" in done.stdout, done.stderr
        """
    )


def test_the_package_does_not_import_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, sparrow_llm; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False"]
