"""Energy-Based Cross Attention (Park et al., NeurIPS 2023, arXiv 2306.09869) on plain tensors.

Letters in the shapes: b batch, n image tokens (pixels of a layer's grid), t text tokens, h heads, d width of a head,
c width of the text context.
"""

from .composition import composition_weight_sum, mix_contexts, smallest_denominator
from .energy import attention_energy, attention_map, norm_energy
from .inversion import ddim_inversion, inversion_sigmas
from .mask import mask_on_grid
from .noise_regularisation import NoiseRegularisation, regularised_noise
from .noising import ADDITIVE, FLOW, Noising
from .repaint import count_model_calls, ddim_step, renoise, repaint_levels
from .schedule import SHAPES, Schedule
from .update import attention_term, key_step, norm_term
from .window import Window

__all__ = [
    "ADDITIVE",
    "FLOW",
    "SHAPES",
    "NoiseRegularisation",
    "Noising",
    "Schedule",
    "Window",
    "attention_energy",
    "attention_map",
    "attention_term",
    "composition_weight_sum",
    "count_model_calls",
    "ddim_inversion",
    "ddim_step",
    "inversion_sigmas",
    "key_step",
    "mask_on_grid",
    "mix_contexts",
    "norm_energy",
    "norm_term",
    "regularised_noise",
    "renoise",
    "repaint_levels",
    "smallest_denominator",
]
