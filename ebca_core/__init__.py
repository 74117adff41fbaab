"""Energy-Based Cross Attention (Park et al., NeurIPS 2023, arXiv 2306.09869) on plain tensors.

energy.py                the energies of a layer, the step down them, the mix of several contexts
denominator.py           the composition's denominator over a whole run, for a check before it starts
mask.py                  a mask of the image, resized to a layer's grid: one weight per image token
schedule.py              windows of the run, and strengths that follow a curve
inversion.py             DDIM inversion of an image
noise_regularisation.py  predicted noise, pulled towards white noise during inversion
noising.py               how a latent consists of image and noise: added, or mixed (flow matching)
repaint.py               RePaint's walk over noise levels, and its steps
one_place.py             whether each object of a prompt is read in one place of the image

Letters in the shapes: b batch, n image tokens (positions of a layer's grid), t text tokens, h heads, d width of a head,
c width of the text context, i objects of a prompt.
"""

from .denominator import smallest_denominator
from .energy import (
    EBCA,
    ContextEnergy,
    attention_energy,
    attention_map,
    attention_over_both,
    attention_term,
    composition_weight_sum,
    energy_values,
    key_step,
    mix_contexts,
    norm_energy,
    norm_term,
    within_norm,
)
from .inversion import ddim_inversion, inversion_sigmas
from .mask import Area, mask_on_grid, mask_tokens
from .noise_regularisation import NoiseRegularisation, regularised_noise
from .noising import ADDITIVE, FLOW, Noising
from .one_place import claims, one_place_score, peaks
from .repaint import count_model_calls, ddim_step, renoise, repaint_levels
from .schedule import SHAPES, Schedule, Window

__all__ = [
    "ADDITIVE",
    "EBCA",
    "FLOW",
    "SHAPES",
    "Area",
    "ContextEnergy",
    "NoiseRegularisation",
    "Noising",
    "Schedule",
    "Window",
    "attention_energy",
    "attention_map",
    "attention_over_both",
    "attention_term",
    "claims",
    "composition_weight_sum",
    "count_model_calls",
    "ddim_inversion",
    "ddim_step",
    "energy_values",
    "inversion_sigmas",
    "key_step",
    "mask_on_grid",
    "mask_tokens",
    "mix_contexts",
    "norm_energy",
    "norm_term",
    "one_place_score",
    "peaks",
    "regularised_noise",
    "renoise",
    "repaint_levels",
    "smallest_denominator",
    "within_norm",
]
