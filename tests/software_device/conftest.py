"""Collects nothing if there is no software device."""

from tests import contracts

collect_ignore_glob = [] if contracts.HAS_SOFTWARE else ["test_*.py"]
