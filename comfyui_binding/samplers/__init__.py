"""Samplers of the pack: inversion of a picture and RePaint."""
