"""Plans of a training run: memory and time, before anything is downloaded or allocated."""
