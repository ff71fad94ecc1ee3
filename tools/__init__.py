"""Checks that people run, as `python -m tools.<name>` or through make; none of them is installed."""
