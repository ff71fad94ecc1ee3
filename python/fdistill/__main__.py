"""The program `fdistill`."""

from __future__ import annotations

import signal
import sys

from fdistill import stopping


def main() -> int:
    # torch's import loses a KeyboardInterrupt inside numpy's import, and then fails with an ImportError.
    with stopping.handled(stopping.end_at_once):
        from fdistill import cli

        status = cli.main()
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the work is done, but torch takes another second to shut down
    return status


if __name__ == "__main__":
    sys.exit(main())
