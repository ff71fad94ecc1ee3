"""`make check-kernels`: compiles the planned kernels for GPUs that this machine has not, and inspects what came out."""
