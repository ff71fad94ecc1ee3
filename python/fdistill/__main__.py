"""The program. What it loads takes seconds, and is not taken apart in the middle."""

from __future__ import annotations

import os
import signal
import sys

STOPPED = 130  # as cli.EXIT_INTERRUPTED


def main() -> int:
    signals = (signal.SIGINT, signal.SIGTERM)
    # KeyboardInterrupt inside of numpy's import is lost in torch's, which then fails with an ImportError.
    previous = [signal.signal(number, lambda *_: os._exit(STOPPED)) for number in signals]
    from fdistill import cli

    for number, handler in zip(signals, previous, strict=True):
        signal.signal(number, handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
