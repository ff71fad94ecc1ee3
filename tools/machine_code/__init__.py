"""`make check-kernels`: compiles Triton's kernels for absent GPUs; checks their machine code and the CUDA library's."""
