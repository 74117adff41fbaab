"""Every reason why EBCA is bypassed in a layer, a call or a run, as the user reads it in the log.

A part of EBCA that cannot act is bypassed: the rest of the run goes on, and the reason is logged once.
"""

from __future__ import annotations

import logging
import threading

import torch
from torch import Tensor

log = logging.getLogger("ebca")

# --- why it is not known which rows of a call or of a layer belong to which prompt and image ---

REGIONS = "another node splits the prompt into regions"
TILES = "another node samples the image in tiles"
FRAMES = "another node samples some images of the batch at a time, and EBCA cannot tell which"
ROWS = "another node changes the rows of the batch"

# --- the nodes for which layers are read ---

TRACE = "EBCA Trace"
REROLL = "EBCA Reroll"

# --- why edits' texts cannot be kept apart in joint attention ---

FORWARD = "another node has replaced a forward pass of the model's network"
ATTENTION = "another node has replaced the attention function or a forward pass of the model's layers"
BLOCK = "another node computes a block of the model's network itself"
TOKENS = "another node changes which tokens the model's attention reads, or how"

EDIT_WITHOUT_TEXT = (
    "EBCA: edits skipped: an edit lacks the text of one of the model's encoders. Encode it with the CLIP of the model."
)
PROMPT_WITHOUT_POOLED = (
    "EBCA: edits skipped: mix_pooled is on, and the prompt has no pooled text. Encode it with the CLIP of the model, "
    "or switch mix_pooled off."
)
MASKS_BESIDE_IMAGE = (
    "EBCA: edits skipped: an edit has a mask, and this model has another image beside its own, where masks do not fit. "
    "Remove the masks of the edits."
)
REFERENCES = (
    "EBCA: edits skipped: this model has a text for each of its reference images, and edits take the place of none. "
    "Remove the reference images to use edits."
)


def update_skipped(reason: str) -> str:
    return f"EBCA: context update skipped: {reason}. Remove that node to use the update there."


def update_needs_rows(reason: str) -> str:
    return (
        f"EBCA: context update skipped: {reason}. It still works without token weights, mask and apply_to = positive."
    )


def edits_skipped(reason: str) -> str:
    return f"EBCA: edits skipped: {reason}. Remove that node to use edits there."


def edits_skipped_for_pack(module: str) -> str:
    """module: the Python module of a function that replaces a forward pass on the network's class."""
    return (
        f"EBCA: edits skipped: '{module}' has replaced a forward pass of the model's network for all workflows. "
        "Disable that custom node pack and restart ComfyUI to use edits there."
    )


def layers_not_read(reader: str, reason: str) -> str:
    return f"{reader}: layers not read: {reason}. Remove that node to have them read."


def recorder_failed(reader: str) -> str:
    """reader: TRACE or REROLL, the node for which layers are read."""
    lost = ", and the trace ends there" if reader == TRACE else ""
    return f"{reader} stopped reading at an error; the image is not affected{lost}. Please report this."


# --- a layer ---

FORWARD_REPLACED = (
    "EBCA: bypassed in cross-attention layers whose forward pass another node has replaced. Remove that node to use "
    "EBCA there."
)
BLOCK_REPLACED = (
    "EBCA: bypassed in layers whose transformer block another node has replaced. Remove that node to use EBCA there."
)
TEXT_REPLACED = (
    "EBCA: bypassed in cross-attention layers in which another node replaces or lengthens the text. Remove that node "
    "to use EBCA there."
)
LAYER_UNNAMED = (
    "EBCA: bypassed in layers that cannot be identified, because another node has replaced the block around them. "
    "Remove that node to use EBCA there."
)
KEYS_UNREAD = (
    "EBCA: bypassed in layers in which another node has replaced the attention with one that ignores the prompt it is "
    "given. Remove that node to use EBCA there."
)
EDITS_PLAIN = (
    "EBCA: some layers compute edits with ComfyUI's own attention, because the attention that another node has put "
    "there does not take a text of the edit's length."
)
UPDATE_LENGTHS = (
    "EBCA: context update skipped: another node changes the prompt's length in the layers, so the token weights do not "
    "fit. It still works without token weights."
)
TOKEN_WEIGHTS_OTHER_TEXT = (
    "EBCA: the token weights have no effect in some calls, because another node gives the model a different text from "
    "the prompt they were made for. Remove that node to use them there."
)
UPDATE_MERGED = (
    "EBCA: context update skipped: another node merges image tokens, so the mask does not fit. It still works without "
    "a mask."
)
UPDATE_KEYS_ONLY = (
    "EBCA: the context update changes the keys only, because another node gives keys and values different contexts. "
    "Remove that node to update the values too."
)
NO_NORM_TERM = (
    "EBCA: gamma_norm has no effect on this model: the model normalises its keys, so E(K) is nearly constant. Use "
    "gamma_attn alone."
)
EDITS_MERGED = (
    "EBCA: edits skipped: another node merges image tokens, so their masks do not fit. They still work without masks."
)
MASKS_WITHOUT_PICTURE = (
    "EBCA: updates and edits with a mask skipped in the layers of the sound: a mask says where in the picture. They "
    "still work there without a mask."
)
EDITS_NEGATIVE_LENGTH = (
    "EBCA: edits skipped on the negative prompt in some layers: another node changes its length between layers. Remove "
    "that node to use edits there."
)
NO_EDIT_UPDATE = (
    "EBCA: gamma_attn and gamma_norm of the edits have no effect on %s: %s. Their alphas act as usual."
)
NOT_SHARED = (
    "EBCA: shared_attention has no effect in some layers: it needs ComfyUI's own PyTorch attention, which no other "
    "pack replaces, on a CPU or a CUDA device that has a kernel for these tensors, and texts without masks. The edits "
    "are computed as without it."
)
SHARED_DIFFERS = (
    "EBCA: shared_attention has no effect in this run: in the first layer with an edit its result was not that of "
    "ordinary attention calls. The edits are computed as without it. Please report this."
)
NO_JOINT_ATTENTION = (
    "EBCA: shared_attention has no effect on %s, which does not attend to text and image in one softmax. The edits are "
    "computed as without it."
)
MAPS_LENGTHS = (
    "EBCA: attention maps not read: another node changes the prompt's length in the layers. Remove that node to have "
    "them read."
)
MAPS_MERGED = (
    "EBCA: attention maps not read: another node merges image tokens. Remove that node to have them read."
)
MAPS_TEXT_CHANGED = (
    "EBCA Trace: the attention maps are means over several texts, because another node changes the prompt during the "
    "run. Remove that node for the maps of the prompt alone."
)

# --- a call ---

TORCH_COMPILE = "EBCA: code compiled by torch.compile is not used while EBCA is on, because it would bypass EBCA."
CALL_WITHOUT_RUN_MASK = (
    "EBCA: use_noise_mask has no effect: another node calls the model without the options of the run, so the update "
    "uses the whole image. Connect a mask, or use one of ComfyUI's own sampling nodes."
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
TOKEN_WEIGHTS_UNKNOWN = (
    "EBCA: the token weights have no effect: no positive prompt contains the text of EBCA Token Weights, as its CLIP "
    "encodes it. Connect one text and one CLIP to both EBCA Token Weights and CLIP Text Encode."
)
NO_EFFECT = (
    "EBCA had no effect: another node runs the model or its attention without ComfyUI's hooks, so the image is the one "
    "without EBCA. Remove the node that replaces the model's function, its forward pass or its attention function."
)
HOOKS_REMOVED = (
    "EBCA has no effect, or a part of it is missing: another node between EBCA's nodes and the sampler removes the "
    "hooks of the nodes before it. Place EBCA's nodes after that node."
)
EDITS_CONTINUE = (
    "EBCA: the edits start this stage of the image with their prompts as encoded: context updates from an earlier "
    "stage are not carried over. For the result of a single run, sample in one stage or set the edits' gammas to 0."
)
NEVER_ON = (
    "EBCA was off in this run: none of its steps lies between a start_percent and its end_percent. Widen the windows, "
    "or sample more of the schedule."
)
REROLL_WITHOUT_NOISE = (
    "EBCA Reroll: this run is sampled as it is, because it adds no noise of its own: it goes on with an earlier stage "
    "or starts from inverted noise."
)
REROLL_UNREAD = (
    "EBCA Reroll: this try is kept as it is, because the attention to the prompt could not be read: another node "
    "changes the prompt, bypasses EBCA in the layers or skips steps, or the sampler does not report its steps. Remove "
    "that node, or use another sampler."
)
REROLL_OTHER_TEXT = (
    "EBCA Reroll: the positive prompt of the sampler is not the encoded text of this node, so the attention can belong "
    "to other words. Connect one text to both, unless nodes in between change the prompt."
)
REROLL_FAILED = "EBCA Reroll could not compute a score; the image is not affected. Please report this."
REROLL_UNTOLD = "EBCA Reroll could not say which seed was kept; the image is not affected. Please report this."
TRACE_FAILED = "EBCA Trace could not build its record; the image is not affected. Please report this."


def mask_resized(mask: tuple[int, int], image: tuple[int, int]) -> str:
    return (
        f"EBCA: a mask of {mask[1]} x {mask[0]} is resized to the image of {image[1]} x {image[0]} that this run "
        "samples. If the run samples a tile or a crop of an image, as upscalers and detailers do, the mask of the "
        "whole image does not fit: crop the mask, or use EBCA without a mask there."
    )


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
        self._said: list[str] = []
        self._lock = threading.Lock()
        #: Flags of `warn_if`, by message and device.
        self._pending: dict[tuple[str, torch.device], Tensor] = {}
        #: Whether EBCA ran in a layer, or a reason for not running was logged.
        self.accounted_for = False

    def warn_once(self, message: str) -> None:
        self._log_once(message, logging.WARNING)

    @property
    def messages(self) -> list[str]:
        """All that is to be said of this run, in order, whether or not an earlier run has logged it."""
        return list(self._said)

    def inform_once(self, message: str) -> None:
        """As `warn_once`, at the level of information."""
        self._log_once(message, logging.INFO)

    def bypassed(self, message: str) -> None:
        """Log why EBCA does not run."""
        self.accounted_for = True
        self.warn_once(message)

    def warn_if(self, flag: Tensor, message: str) -> None:
        """Log a warning when the run has ended if a flag, a tensor of one truth value, was true at any time.

        The host does not wait for the flag before.
        """
        key = (message, flag.device)
        with self._lock:
            self._pending[key] = flag if key not in self._pending else self._pending[key] | flag

    def settle(self) -> None:
        """Log what `warn_if` has found. The host waits for the device."""
        with self._lock:
            pending, self._pending = self._pending, {}
        for (message, _), flag in pending.items():
            if bool(flag):
                self.warn_once(message)

    def _log_once(self, message: str, level: int) -> None:
        with self._lock:
            if message not in self._said:
                self._said.append(message)
            if message in self._warned:
                return
            self._warned.add(message)
        log.log(level, message)
