"""Samplers of the pack: inversion of an image and RePaint."""
