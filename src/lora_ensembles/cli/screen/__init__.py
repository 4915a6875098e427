"""Output: what is printed and written, and where."""
