"""What Ctrl-C and SIGTERM do: while modules load they end the process, in training they ask it to stop, elsewhere they
interrupt. A signal that the caller ignores, as `nohup` and a shell's background jobs do, stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_interrupts: list[int] = []


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Both signals go to `handler`. Changes nothing outside the main thread, where Python refuses to set handlers."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in SIGNALS}
        # None: the handler is not Python's, so it could not be put back.
        previous = {number: old for number, old in found.items() if old not in (signal.SIG_IGN, None)}
    for number in previous:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def end_at_once(*_: object) -> None:
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Both signals raise KeyboardInterrupt. Python loses one raised in a callback, so `requested` raises it again."""
    _interrupts.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        _interrupts.append(number)
        raise KeyboardInterrupt

    with handled(interrupt):
        yield


@contextmanager
def requested() -> Iterator[list[int]]:
    """A list that the first signal makes non-empty; a second one interrupts."""
    if _interrupts:
        raise KeyboardInterrupt
    requests: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    with handled(request):
        yield requests
