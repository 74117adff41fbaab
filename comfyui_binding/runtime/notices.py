"""Every reason for which EBCA stays out of a layer, a call or a run, as the user reads it in the log.

A part of EBCA that cannot act is bypassed: the rest of the run goes on, and the reason is logged once.
"""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("ebca")

# --- a layer ---

FORWARD_REPLACED = (
    "EBCA: bypassed in cross-attention layers whose forward pass another node has replaced. Remove that node to use "
    "EBCA there."
)
UPDATE_REGIONS = (
    "EBCA: context update skipped: another node splits the prompt into regions or the image into tiles. Remove that "
    "node to use the update there."
)
UPDATE_REGIONS_ROWS = (
    "EBCA: context update skipped: another node splits the prompt into regions or the image into tiles. It still works "
    "without token weights, mask and apply_to = positive."
)
UPDATE_LENGTHS = (
    "EBCA: context update skipped: another node changes the prompt's length in the layers, so the token weights do not "
    "fit. It still works without token weights."
)
UPDATE_MERGED = (
    "EBCA: context update skipped: another node merges image tokens, so the mask does not fit. It still works without "
    "a mask."
)
UPDATE_KEYS_ONLY = (
    "EBCA: the context update changes the keys only, because another node gives keys and values different contexts."
)
NO_NORM_TERM = (
    "EBCA: gamma_norm has no effect on this model, because it normalises its keys: E(K) is constant there. Use "
    "gamma_attn alone."
)
EDITS_REGIONS = (
    "EBCA: edits skipped: another node splits the prompt into regions or the image into tiles. Remove that node to use "
    "edits there."
)
EDITS_MERGED = (
    "EBCA: edits skipped: another node merges image tokens, so their masks do not fit. They still work without masks."
)
EDITS_NEGATIVE_LENGTH = (
    "EBCA: edits skipped on the negative prompt in some layers: another node changes its length between layers. Remove "
    "that node to use edits there."
)
TRACE_REGIONS = (
    "EBCA Trace: layers not recorded: another node splits the prompt into regions or the image into tiles. Remove that "
    "node to record them."
)
MAPS_LENGTHS = (
    "EBCA Trace: attention maps not recorded: another node changes the prompt's length in the layers. Remove that node "
    "to record them."
)
MAPS_MERGED = (
    "EBCA Trace: attention maps not recorded: another node merges image tokens. Remove that node to record them."
)

# --- a call ---

TORCH_COMPILE = "EBCA: code compiled by torch.compile is not used while EBCA is on, because it would leave EBCA out."
CALL_WITHOUT_RUN_MASK = (
    "EBCA: use_noise_mask has no effect: another node calls the model without the options of the run, so the update "
    "uses the whole image. Wire a mask, or use one of ComfyUI's own sampling nodes."
)
CALL_WITHOUT_RUN_EDITS = (
    "EBCA: edits start again at each step: another node calls the model without the options of the run. Use one of "
    "ComfyUI's own sampling nodes to carry their contexts through the run."
)
CALL_WITHOUT_RUN_TRACE = (
    "EBCA Trace: nothing is recorded: another node calls the model without the options of the run. Use one of "
    "ComfyUI's own sampling nodes to record it."
)


def network_replaced(name: str) -> str:
    return (
        f"EBCA: bypassed in calls in which another node has put a {name} in place of the model's own network. Remove "
        "that node to use EBCA there."
    )


def context_rows_differ(prompts: int, images: int) -> str:
    return (
        f"EBCA: bypassed in calls in which another node gives the model {prompts} prompts for {images} images. Remove "
        "that node to use EBCA there."
    )


# --- a run ---

NO_NOISE_MASK = (
    "EBCA: use_noise_mask is on but the latent has no noise mask, so the update uses the whole image. Put a Set Latent "
    "Noise Mask before the sampler, or switch use_noise_mask off."
)
NO_EFFECT = (
    "EBCA had no effect: another node runs the model without ComfyUI's hooks, so the image is the one without EBCA. "
    "Remove the node that replaces the model's function or its forward pass."
)
NEVER_ON = (
    "EBCA was off in this run: none of its steps lies between a start_percent and its end_percent. Widen the windows, "
    "or sample more of the schedule."
)
TRACE_FAILED = "EBCA Trace could not build its record; the image is not affected. Please report this."


def token_weights_error(weights: int, tokens: int) -> ValueError:
    return ValueError(
        f"The token weights are for a prompt of {weights} tokens, but the positive prompt has {tokens} tokens. Give "
        "EBCA Token Weights the text that the positive prompt encodes."
    )


class Notices:
    """The warnings of one run. Each is logged once; calls may come in several threads."""

    def __init__(self, warned: set[str] | None = None):
        """warned: warnings that are not logged again."""
        self._warned: set[str] = set() if warned is None else warned
        self._lock = threading.Lock()
        #: Whether EBCA ran in a layer, or a reason for not running was logged.
        self.accounted_for = False

    def warn_once(self, message: str) -> None:
        self._log_once(message, logging.WARNING)

    def _log_once(self, message: str, level: int) -> None:
        with self._lock:
            if message in self._warned:
                return
            self._warned.add(message)
        log.log(level, message)

    def inform_once(self, message: str) -> None:
        """As `warn_once`, at the level of information."""
        self._log_once(message, logging.INFO)

    def bypassed(self, message: str) -> None:
        """Log why EBCA does not run."""
        self.accounted_for = True
        self.warn_once(message)
