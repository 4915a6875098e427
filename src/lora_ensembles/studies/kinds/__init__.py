"""Kinds of records, one per file."""
