"""From probabilities to calibrated ones."""
