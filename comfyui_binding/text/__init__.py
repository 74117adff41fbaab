"""Prompts as text encoders see them: tokens, token weights, conditionings of edits."""
