"""`make check-versions`: tests the wheel under each version of torch, Python and Triton in a table."""
