"""What is made of it: verdicts, the tables of a terminal, the page, the figures of README and docs."""
