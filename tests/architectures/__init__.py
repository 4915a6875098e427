"""Tiny models of every architecture of transformers, and what is held on each of them against PEFT."""
