"""A row's process: a line of JSON comes in for each run, and one goes out."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from .rows import Job, Run, load


class Worker:
    """A row in a process of its own, so that peak memory is the row's and idle threads are no one else's."""

    def __init__(self, job: Job) -> None:
        # libgomp reads it when it is loaded: threads that spin after every operation take the cores of all rows.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(job.threads)}
        self.row = job.row
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()

    def run(self, ids: list[int]) -> Run:
        """Generates once."""
        self._write({"ids": ids})
        return Run(**self._read())

    def close(self) -> int:
        """Ends it; its peak memory in bytes."""
        self._write({})
        peak: int = self._read()["peak_memory"]
        self._process.wait()
        return peak

    def kill(self) -> None:
        """Ends it without asking."""
        self._process.kill()
        self._process.wait()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of row {self.row} ended: what it said is above")
        message: dict[str, Any] = json.loads(line)
        return message


def main() -> None:
    """What the process runs."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    generate = load(Job(**json.loads(sys.argv[1])))
    answer({})
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            break
        answer(asdict(generate(request["ids"])))
    answer({"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


if __name__ == "__main__":
    main()
