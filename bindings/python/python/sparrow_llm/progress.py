"""Progress on stderr, for work that takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much there is to do."""


class _Bar:
    """A line on stderr that appears once work has taken two seconds, so that nothing flashes."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.drawn = 0.0
        self.width = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.began < 2 or now - self.drawn < 0.2:
            return
        self.drawn = now
        line = f"{stage} {done / total:.0%}" if total else stage
        print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
        self.width = len(line)

    def clear(self) -> None:
        if self.width:
            print("\r" + " " * self.width + "\r", end="", file=sys.stderr, flush=True)


class Reporting:
    """What a caller wants to see: `None` shows a line where stderr is a terminal, `True` always, `False` never."""

    def __init__(self, progress: Progress | bool | None) -> None:
        self.bar: _Bar | None = None
        self.report: Progress | None = None
        if callable(progress):
            self.report = progress
        elif progress or (progress is None and sys.stderr.isatty()):
            self.report = self.bar = _Bar()

    def __enter__(self) -> Progress | None:
        return self.report

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.clear()
