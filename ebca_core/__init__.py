"""Energy-Based Cross Attention (Park et al., NeurIPS 2023, arXiv 2306.09869) on plain tensors.

Letters in the shapes: b batch, n image tokens (pixels of a layer's grid), t text tokens, h heads, d width of a head,
c width of the text context.
"""

from .composition import composition_weight_sum, mix_contexts, smallest_denominator
from .energy import attention_energy, attention_map, norm_energy
from .inversion import ddim_inversion, rising_sigmas
from .mask import mask_on_grid
from .noise_regularisation import NoiseRegularisation, regularised_noise
from .repaint import ddim_step, model_calls, noised_again, repaint_levels
from .schedule import SHAPES, Schedule
from .update import attention_term, key_step, norm_term
from .window import Window

__all__ = [
    "SHAPES",
    "NoiseRegularisation",
    "Schedule",
    "Window",
    "attention_energy",
    "attention_map",
    "attention_term",
    "composition_weight_sum",
    "ddim_inversion",
    "ddim_step",
    "key_step",
    "mask_on_grid",
    "mix_contexts",
    "model_calls",
    "noised_again",
    "norm_energy",
    "norm_term",
    "regularised_noise",
    "repaint_levels",
    "rising_sigmas",
    "smallest_denominator",
]
