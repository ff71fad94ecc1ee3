"""What the Triton kernels of all ops share. Imported with the first call that Triton serves, never before."""
