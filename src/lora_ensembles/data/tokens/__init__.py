"""Texts as token ids: prompts with their labels, and prompts with open answers."""
