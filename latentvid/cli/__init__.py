"""The command line: one file per verb; importing any of them loads no torch."""
