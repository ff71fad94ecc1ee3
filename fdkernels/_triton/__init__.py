"""The code that the Triton kernels of all ops share. The first call that Triton serves imports it, nothing before."""
