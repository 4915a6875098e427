"""Processes and nodes: how work is cut for them, and how it runs on a Ray cluster."""
