"""The training loop, its settings, its log and its checkpoints."""
