"""Methods that EBCA is compared with, each by its published algorithm, on any U-Net of ComfyUI. The pack uses none.

Those that need no code of their own (higher cfg, prompt weighting, ComfyUI's PAG) are wired in `alignment/methods.py`.
"""
