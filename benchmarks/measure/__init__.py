"""How cases are timed and counted: interleaved rounds, intervals, checks against float64, the run over all cases."""
