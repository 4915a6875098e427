"""Distributions over a member's adapter, of which samples are members of an ensemble."""
