"""The program."""

from __future__ import annotations

import signal
import sys

from fdistill import stopping


def main() -> int:
    # KeyboardInterrupt inside of numpy's import is lost in torch's, which then fails with an ImportError.
    with stopping.handled(stopping.end_at_once):
        from fdistill import cli

        status = cli.main()
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # what was asked for is done; to take torch down takes another second
    return status


if __name__ == "__main__":
    sys.exit(main())
