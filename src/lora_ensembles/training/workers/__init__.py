"""Training over workers: each trains a slice of the members, and the result is that of one process."""
