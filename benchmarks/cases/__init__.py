"""What is timed: shapes, the formulas and chains of peers, variants, and the machine that they run on."""
