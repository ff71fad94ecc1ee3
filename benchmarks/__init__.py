"""`python -m benchmarks`: fdkernels against the peers' chains, eager and compiled, and the machine's bandwidth."""

import os

# The profiler announces each start and stop on stderr, in the middle of the tables.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
