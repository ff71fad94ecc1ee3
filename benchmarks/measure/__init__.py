"""How it is timed and counted: interleaved rounds, intervals, checks against float64, and the run over all cases."""
