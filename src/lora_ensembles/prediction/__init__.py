"""What comes out, and how good it is: predictions, metrics, uncertainty and intervals."""
