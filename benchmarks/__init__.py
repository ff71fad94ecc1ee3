"""`python -m benchmarks`: fdkernels against the peers' eager chains, torch.compile of them, and the streaming limit."""
