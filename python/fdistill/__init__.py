"""fdistill: a thin trainer of one-step students, built on fdkernels. Command line: `fdistill --help`."""
