"""One training loop, and the tasks that run in it."""
