"""Rivals of EBCA, each by its published algorithm, on any U-Net of ComfyUI. Bench code: the pack does not use it.

Those that need no code of their own (higher cfg, prompt weighting, ComfyUI's PAG) are wired in `alignment_methods.py`.
"""
