"""`make check-versions`: builds from source and tests under each version of torch, Python and Triton in a table."""
