"""What is made of the rows: verdicts, the terminal's tables, the page, docs/speed.md and the README's rows."""
