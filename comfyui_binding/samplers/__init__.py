"""Runs that the pack makes or changes: inversion of an image, RePaint, and Reroll (several noises)."""
