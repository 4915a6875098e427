"""What is measured beside the paper's comparisons, one kind a file."""
