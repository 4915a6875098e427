"""Text from an ensemble, and how sure it is of each token."""
