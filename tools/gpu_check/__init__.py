"""`make gpu-check`: builds, tests, sanitizes, times and profiles on the machine that it runs on, and writes JSON."""
