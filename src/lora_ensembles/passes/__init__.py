"""One forward pass of the base, and no more of it than is needed."""
