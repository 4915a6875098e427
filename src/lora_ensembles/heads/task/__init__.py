"""Trainable task heads: tables of texts, their scores and losses."""
