"""What every command line here does before it prints."""

from __future__ import annotations

import io
import sys


def accept_any_text() -> None:
    """Print "?" for a character that the terminal's encoding lacks (±, ×, a path), in place of a traceback.

    stderr does so by itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
