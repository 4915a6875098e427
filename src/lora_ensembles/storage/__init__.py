"""Ensembles on disk and on the hub, and what they remember beside their weights."""
