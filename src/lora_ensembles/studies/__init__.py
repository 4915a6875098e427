"""Experiments whose results are records: tables and figures are built from records, never from a run's
memory.
"""
