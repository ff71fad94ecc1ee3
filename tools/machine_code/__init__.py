"""`make check-kernels`: compiles Triton's kernels for GPUs that this machine has not, and inspects their machine code
and that of the CUDA library."""
