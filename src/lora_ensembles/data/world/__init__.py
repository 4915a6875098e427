"""The generated world and its tasks."""
