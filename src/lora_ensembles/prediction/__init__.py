"""Results and how good they are: predictions, metrics, uncertainty and intervals."""
