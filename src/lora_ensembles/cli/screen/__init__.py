"""What is printed and written, and where."""
