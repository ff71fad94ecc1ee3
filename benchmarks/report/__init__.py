"""What is made of the rows: verdicts, the terminal's tables, the page, the figures of README and docs."""
