"""What every command line of this repository does before it prints."""

from __future__ import annotations

import io
import sys


def accept_any_text() -> None:
    """Make stdout print "?" for a character that the terminal's encoding lacks (±, ×, in a path), not raise.

    stderr needs no change: Python already escapes such characters there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
