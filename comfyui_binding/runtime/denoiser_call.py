"""One call of the denoiser: the text contexts in it, which move from layer to layer.

The architecture calls `begin` when the network gets its context. In each text cross-attention layer it calls `context`
(what the layer reads) and `output` (what it returns, after which every context takes its step); at the end, `finish`.
Changes are kept apart from the contexts they belong to (`context + change`), so that what other packs do to a context
between layers is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor
from torch.nn.functional import pad

from ...ebca_core import composition_weight_sum, key_step, mix_contexts, within_norm
from ..shared_on_deepcopy import SharedOnDeepcopy
from . import notices
from .batch_layout import CallRows, Chunk
from .carried_contexts import CallKey
from .sampling_run import Run
from .settings import ContextUpdate, Edit
from .tensor_cache import rows_of_images
from .text_attention import EncodedText, ImageTokens, TextAttention


class Mixed(NamedTuple):
    """The edits that a track is mixed in for in a layer, and the sum of their weights; None where masks decide it."""

    edits: Sequence[Edit]
    weight: float | None


#: By how much of its norm a text must change to count as another one.
ANOTHER_TEXT = 0.25
NO_TEXT = EncodedText(None)
NOT_MIXED = Mixed((), 0.0)


@dataclass(frozen=True, eq=False)
class RowUpdate:
    """An update of some rows of a track's context. Gammas are in units of the track's scale."""

    rows: slice
    chunks: Sequence[Chunk]
    gamma_attn: float
    gamma_norm: float
    #: Of the prompts' update: the names of the layers that compute it (None: all), its mask, and the token weights
    #: [images, t] of those prompts that have any, all of whose tokens are a layer's unless the prompts are known.
    layers: frozenset[str] | None = None
    mask: Tensor | None = None
    token_weights: Mapping[Chunk, Tensor] | None = None
    knows_prompts: bool = False
    #: Whether it must be known which rows belong to which prompt and image.
    needs_rows: bool = False
    #: The node of the graph that asks for the update.
    node_id: str | None = None


@dataclass(eq=False)
class ContextTrack:
    """A text context that moves from layer to layer.

    There are three kinds. The prompts' own track (chunk None) holds all rows of the call, and starts each call from
    what the call was given. An edit's track holds its context for one positive prompt. The track of any other prompt
    (edit None) holds a copy of it that all edits share. The last two carry their change from call to call.
    """

    updates: Sequence[RowUpdate]
    #: The largest gamma. Steps are divided by it, so that small gammas do not underflow in half precision.
    scale: float
    chunk: Chunk | None = None
    edit: Edit | None = None
    #: An edit's texts as they were encoded, by stream.
    texts: Mapping[str, EncodedText] = field(default_factory=dict)
    #: How many copies of the prompt's own tokens a copy of it holds.
    copies: int = 1
    #: The change that earlier calls have carried to this one, by stream.
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    #: The change so far, by stream and by the shape of the context: some packs change it between layers.
    changes: dict[str, dict[torch.Size, Tensor]] = field(default_factory=dict)
    #: In the present layer: the edits that it is mixed in for; the text (of an edit, as it was encoded), the context
    #: that was read (a slice: rows of the layer's own), its keys and its values.
    mixed: Mixed = NOT_MIXED
    text: EncodedText = NO_TEXT
    read: Tensor | slice | None = None
    k: Tensor | None = None
    v: Tensor | None = None

    def begin(self) -> None:
        """Start again from what was carried to the call."""
        self.changes = {stream: {change.shape: change} for stream, change in self.carried.items()}

    def at(self, context: Tensor, stream: str) -> Tensor:
        """The context [b, t, c] of a stream with its change so far."""
        change = self.changes.get(stream, {}).get(context.shape)
        return context if change is None else apply_change(context, change)

    def move(self, step: Tensor, stream: str) -> None:
        """Add a step [b, t, c], in units of the scale, to the change of a stream's context of this shape."""
        changes = self.changes.setdefault(stream, {})
        changes[step.shape] = accumulate(changes.get(step.shape), step, self.scale)

    def fit(self, tokens: int, stream: str) -> bool:
        """Repeat or cut the change of a copy to a context of so many tokens; False where neither leads there."""
        for change in self.changes.get(stream, {}).values():
            own = change.shape[1]
            if own != tokens:
                if tokens % own and own % tokens:
                    return False
                change = change.repeat(1, max(1, tokens // own), 1)[:, :tokens]
                self.changes[stream] = {change.shape: change}
        return True


class EditsRefused(Exception):
    """Ends a call of the model in which edits cannot be mixed in; it is made again without EBCA, as is every later one.

    The message is for the log.
    """


class DenoiserCall(SharedOnDeepcopy):
    """One call of the model with EBCA on; `begin` to `finish` is one pass of its network.

    Some packs run the network several times in one call. Each pass starts from what the call began with, and the last
    one counts for what is carried on.
    """

    def __init__(self, run: Run, sigma: float | None, sigma_on_device: Tensor, latent_size: tuple[int, int]):
        """sigma: None where nothing depends on it; sigma_on_device: the same where the model has it, which costs no
        wait; latent_size: height and width of the model's input."""
        self.run = run
        self.sigma = sigma
        self.latent_size = latent_size
        self._sigma_on_device = sigma_on_device
        #: The context updates that are on.
        self.updates = run.timeline.updates(sigma)
        self._weights = run.timeline.weights(sigma)
        self._gammas = run.timeline.gammas(sigma)
        self._energy = run.settings.energy
        self._has_masks = any(edit.mask is not None for edit in self._weights)
        self.limits_norm = any(edit.composition.norm_limit for edit in self._weights)
        #: Whether the image part of joint attention is computed once for all texts, where it can be.
        self.shares_attention = any(edit.composition.shares_attention for edit in self._weights)
        self._chooses_layers = any(edit.composition.layers is not None for edit in self._weights)
        #: By track and layer: the edits that are mixed in.
        self._mixed: dict[tuple[Edit | None, str], Mixed] = {}
        for edit in () if self._chooses_layers else (None, *run.settings.edits):
            self._mixed_in(edit, "")
        self._carried_on: dict[CallKey, Tensor] = {}
        #: The edits' texts beside a positive prompt as the layers read them, by stream, where that is not their encoded
        #: context.
        self.texts: Mapping[tuple[Edit, Hashable], Mapping[str, EncodedText]] = {}

    @property
    def is_active(self) -> bool:
        return bool(self.updates or self._weights or self._gammas)

    @property
    def edits(self) -> list[Edit]:
        """The edits that are on."""
        return [edit for edit in self.run.settings.edits if edit in self._weights or edit in self._gammas]

    @property
    def pooled_weights(self) -> dict[Edit, float]:
        """The edits whose pooled texts are mixed into the prompt's, with their weights."""
        return {edit: weight for edit, weight in self._weights.items() if edit.is_pooled_text_mixed}

    def commit(self) -> None:
        """Carry the edits' contexts to the next call."""
        self.run.carried.store(self._carried_on, self.sigma)
        if not self.run.is_whole:
            self.run.notices.settle()

    # --- one pass of the network ---

    def begin(
        self,
        layers: Sequence[str],
        unread: Collection[str],
        rows: CallRows,
        context: Tensor,
        stream: str = "",
        given: Tensor | None = None,
    ) -> None:
        """Plan a pass. layers: their names, in the order of the pass; context [b, t, c]: what the first of them reads.

        unread: the layers whose update no other layer reads. stream: which of the network's texts the context is;
        given: what the network was given, if it is another text.
        """
        self.chunks = chunks = rows.chunks
        self._why_rows_unknown = notices.REGIONS if chunks else rows.reason
        self._first, self._unread = layers[0], unread
        self._network_context = context
        self._given = context if given is None else given
        self._contexts = {stream: context}
        self._may_repeat = self.run.settings.architecture.repeats_prompts
        self._tokens_before_text = self.run.settings.architecture.tokens_before_text
        self._lengths_known = bool(chunks) and all(chunk.entry.tokens for chunk in chunks)
        self._repeats = self._known_repeats() if self._lengths_known else None
        self._token_weights: dict[tuple[RowUpdate, int], Tensor] = {}
        self._has_positive = any(chunk.entry.positive for chunk in chunks) or not chunks
        self._prompts = self._prompt_track()
        self._composes = bool(self._weights or self._gammas)
        self._edits = self._edit_tracks() if self._composes else []
        self._recorder = None
        if self.run.recorder is not None:
            self._record_safely(self._start_recording, layers)
        self.restart()

    def restart(self) -> None:
        """The network starts again from its first layer."""
        self._updated_layers = 0
        self._acted: set[str | None] = set()
        for track in (self._prompts, *self._edits):
            track.begin()
        if self._recorder is not None:
            self._record_safely(self._recorder.begin)

    def works_in(self, layer: str) -> bool:
        """Whether a layer needs more than the updated context."""
        is_needed = self._recorder is not None or self._composes
        return is_needed or any(update.layers is None or layer in update.layers for update in self._prompts.updates)

    def context(self, layer: str, context: Tensor, stream: str = "") -> Tensor:
        """The prompts' context [b, t, c] of a stream as updated so far, for a layer to read."""
        if layer == self._first:
            self.restart()
        self._contexts.setdefault(stream, context)
        return self._prompts.at(context, stream)

    def output(self, layer: TextAttention, out: Tensor) -> Tensor:
        """The layer's attention output [b, n, (h d)] with the edits mixed in; then every context takes its step."""
        self.run.notices.accounted_for = True
        # Whether the layer's rows are the call's, so that it is known whose prompt each of them holds.
        own_rows = bool(self.chunks) and layer.q.shape[0] == layer.k.shape[0] == self._network_context.shape[0]
        if self._composes:
            out = self._compose(layer, out, own_rows)
        change = None if layer.name in self._unread else self._update_prompts(layer, own_rows)
        if self._recorder is not None:
            self._record_safely(self._record_prompts, layer, change, own_rows)
        return out

    def finish(self) -> None:
        """Keep what the pass has changed and recorded."""
        for track in self._edits:
            for stream, changes in track.changes.items():
                change = next(iter(changes.values()))
                if change is not track.carried.get(stream):
                    own = change[:, : change.shape[1] // track.copies]
                    self._carried_on[track.edit, track.chunk.cond, track.chunk.images, stream] = own
        moved = [
            (self._contexts[stream], changes.get(self._contexts[stream].shape))
            for stream, changes in self._prompts.changes.items()
        ]
        moved = [(text, change) for text, change in moved if change is not None]
        self.run.note_update(moved, self._updated_layers, self._acted)
        if self._recorder is not None:
            self._record_safely(self.run.recorder.add, self._recorder, self._sigma_on_device)

    # --- the prompts ---

    def _prompt_track(self) -> ContextTrack:
        """One track for all rows: every layer's steps start from the same context and are summed."""
        scale = max((max(update.gamma_attn, update.gamma_norm) for update in self.updates), default=1.0)
        everything = [(slice(0, self._network_context.shape[0]), self.chunks)]
        positive = [(chunk.rows, [chunk]) for chunk in self.chunks if chunk.entry.positive]
        updates = [
            self._row_update(update, scale, rows, chunks)
            for update in self.updates
            for rows, chunks in (positive if update.positive_only and self.chunks else everything)
        ]
        return ContextTrack(updates, scale)

    def _row_update(self, update: ContextUpdate, scale: float, rows: slice, chunks: Sequence[Chunk]) -> RowUpdate:
        weights, knows_prompts = None, False
        if update.token_weights is not None:
            knows_prompts = update.token_weights.pieces is not None
            found = {chunk: self.run.token_weights_of(update.token_weights, chunk) for chunk in chunks}
            cast = self.run.cache.cast  # before the layers: a copy to the device makes the host wait
            weights = {c: cast(values, self._network_context) for c, values in found.items() if values is not None}
        return RowUpdate(
            rows,
            chunks,
            update.gamma_attn / scale,
            update.gamma_norm / scale,
            update.layers,
            update.mask,
            weights or None,
            knows_prompts,
            update.positive_only or update.token_weights is not None or update.mask is not None,
            update.node_id,
        )

    def _update_prompts(self, layer: TextAttention, own_rows: bool) -> Tensor | None:
        """Update the context for the layers that follow -> this layer's change [b, t, c], in units of the scale."""
        total = None
        for update in self._prompts.updates:
            if update.layers is not None and layer.name not in update.layers:
                continue
            bypass = self._update_bypass(update, layer, own_rows)
            if bypass is not None:
                self.run.notices.warn_once(bypass)
                continue
            rows = update.rows if own_rows else slice(None)
            gamma_norm = update.gamma_norm if not layer.normalises_keys else self._no_gamma_norm(update)
            if update.gamma_attn == 0 and gamma_norm == 0:
                continue
            mask, repeats = update.mask, self._layer_repeats(layer) if gamma_norm != 0 else None
            step = key_step(
                layer.k[rows],
                layer.q[rows],
                layer.heads,
                layer.attend_exchanged,
                update.gamma_attn,
                gamma_norm,
                None if update.token_weights is None else self._token_weight_rows(update, layer),
                None if mask is None else self._mask_rows(mask, update.chunks, layer),
                None if repeats is None else repeats[rows],
                self._energy,
            )
            self._acted.add(update.node_id)
            if total is None and step.shape == layer.k.shape:
                total = step
            else:
                total = torch.zeros_like(layer.k) if total is None else total
                total[rows] += step
        if total is None:
            return None
        if layer.value_context is not layer.context:
            if layer.values_follow is None:
                self.run.notices.warn_once(notices.UPDATE_KEYS_ONLY)
            else:
                self.run.notices.warn_if(layer.values_follow.logical_not().any(), notices.UPDATE_KEYS_ONLY)
        (change,) = layer.pullback([total], [slice(None)], [layer.words])
        self._prompts.move(change, layer.stream)
        self._updated_layers += 1
        return change

    def _no_gamma_norm(self, update: RowUpdate) -> float:
        """The gamma_norm of an update in layers that normalise their keys: 0, which is logged."""
        if update.gamma_norm != 0:
            self.run.notices.inform_once(notices.NO_NORM_TERM)
        return 0.0

    def _update_bypass(self, update: RowUpdate, layer: TextAttention, own_rows: bool) -> str | None:
        """Why an update cannot act in a layer; None if it can."""
        if not own_rows:
            if layer.q.shape[0] != layer.k.shape[0]:
                return notices.update_skipped(self._why_rows_unknown)
            if update.needs_rows:
                return notices.update_needs_rows(self._why_rows_unknown)
        if update.token_weights is not None and not self._are_as_long(update.token_weights, layer):
            return notices.UPDATE_LENGTHS
        if update.mask is not None and not _is_on_grid(layer):
            return notices.UPDATE_MERGED if layer.grid != () else notices.MASKS_WITHOUT_PICTURE
        return None

    def _token_weight_rows(self, update: RowUpdate, layer: TextAttention) -> Tensor:
        """Weights [rows of the update, t, 1]: the user's on positive prompts, 1 on the others."""
        key = (update, layer.k.shape[1])
        if key not in self._token_weights:
            self._token_weights[key] = self._make_token_weights(update, layer)
        return self._token_weights[key]

    def _make_token_weights(self, update: RowUpdate, layer: TextAttention) -> Tensor:
        return torch.cat([self._token_weights_of(chunk, update, layer.k) for chunk in update.chunks])

    def _token_weights_of(self, chunk: Chunk, update: RowUpdate, keys: Tensor) -> Tensor:
        """Weights [images, t, 1] of one prompt; 1 where a node has put another text into the call."""
        tokens, values = keys.shape[1], update.token_weights.get(chunk)
        ones = torch.ones(len(chunk.images), tokens, 1, dtype=keys.dtype, device=keys.device)
        if values is None:
            return ones
        is_own, values = self._holds_prompt(chunk), self._for_all_tokens(values, tokens, update.knows_prompts)
        if is_own is False or values is None:
            self.run.notices.warn_once(notices.TOKEN_WEIGHTS_OTHER_TEXT)
            return ones
        rows = rows_of_images(values, chunk).to(keys).unsqueeze(-1)
        if is_own is True:
            return rows
        self.run.notices.warn_if(is_own.logical_not().any(), notices.TOKEN_WEIGHTS_OTHER_TEXT)
        return torch.where(is_own, rows, ones)

    def _for_all_tokens(self, values: Tensor, tokens: int, is_prompt_known: bool) -> Tensor | None:
        """Weights [b, t] of a prompt -> of the tokens that a layer reads; None where they cannot be the prompt's.

        ComfyUI repeats prompts, or the network has tokens of its own around them.
        """
        own = values.shape[1]
        if self._may_repeat:
            return None if tokens % own else values.repeat(1, tokens // own)
        before = self._tokens_before_text if is_prompt_known else 0
        after = tokens - before - own
        return None if after < 0 or (after and not is_prompt_known) else pad(values, (before, after), value=1.0)

    def _holds_prompt(self, chunk: Chunk) -> bool | Tensor:
        """Whether a prompt's rows of the call hold the text that the guider has for it: True, False or [images, 1, 1].

        Noise that another node adds to the text is ignored.
        """
        text, context = self.run.layout.text_of(chunk), self._given[chunk.rows]
        if text is None:
            return True
        if context.shape[1] % text.shape[1] or context.shape[2] != text.shape[2]:
            return False
        own = rows_of_images(self.run.cache.cast(text, context, torch.float32), chunk)
        distance = torch.linalg.vector_norm(context[:, : own.shape[1]].float() - own, dim=(1, 2))
        return (distance <= ANOTHER_TEXT * torch.linalg.vector_norm(own, dim=(1, 2))).view(-1, 1, 1)

    # --- the edits ---

    def _edit_tracks(self) -> list[ContextTrack]:
        """Each edit has a track for every positive prompt; for any other prompt, all edits share one."""
        return [
            self._edit_track(edit, chunk)
            for chunk in self.chunks
            for edit in (self.run.settings.edits if chunk.entry.positive else (None,))
        ]

    def _edit_track(self, edit: Edit | None, chunk: Chunk) -> ContextTrack:
        if edit is not None:
            gammas = self._gammas.get(edit, (0.0, 0.0))
        else:  # the shared copy moves by the mean of the edits' updates
            count = len(self.run.settings.edits)
            gammas = tuple(sum(values) / count for values in zip(*self._gammas.values(), strict=True)) or (0.0, 0.0)
        scale = max(gammas)
        return ContextTrack(
            updates=[RowUpdate(chunk.rows, [chunk], gammas[0] / scale, gammas[1] / scale)] if scale else [],
            scale=scale,
            chunk=chunk,
            edit=edit,
            texts=self._encoded(edit, chunk),
            copies=1 if edit is not None else self._copies_of(chunk),
            carried=self.run.carried.load(edit, chunk, self._network_context.device, self.sigma),
        )

    def _encoded(self, edit: Edit | None, chunk: Chunk) -> Mapping[str, EncodedText]:
        """An edit's texts for each row of a chunk; none for an edit that is off, and for the copy of the prompt."""
        if edit is None or not (edit in self._weights or edit in self._gammas):
            return {}
        if not self.texts:
            return {"": EncodedText(self.run.cache.edit_rows(edit, chunk, self._network_context))}
        return {
            stream: text.map_rows(lambda tensor: rows_of_images(tensor, chunk))
            for stream, text in self.texts[edit, chunk.cond].items()
        }

    def _mixed_in(self, edit: Edit | None, layer: str) -> Mixed:
        """What a track (None: the shared one) is mixed in for in a layer: its own edit, or all that have a weight."""
        edits = [one for one in self._weights if edit in (None, one) and one.is_mixed_in(layer)]
        is_masked = any(one.mask is not None for one in edits)
        mixed = Mixed(edits, None if is_masked else sum(self._weights[one] for one in edits))
        self._mixed[edit, layer if self._chooses_layers else ""] = mixed
        return mixed

    def _compose(self, layer: TextAttention, out: Tensor, own_rows: bool) -> Tensor:
        """Mix the edits' outputs into the layer's, [b, n, (h d)], and move the edits' contexts.

        Every output is the layer's own, other packs' attention included. The weights of the mixture sum to one, so a
        branch that a pack adds without reading the text (an image prompt) passes through it unchanged.
        """
        if not own_rows:
            self.run.notices.warn_once(notices.edits_skipped(self._why_rows_unknown))
            if self._has_positive:
                self.run.layers_without_edits.add(layer.name)
            return out
        if self._has_positive:
            self.run.layers_without_edits.discard(layer.name)
        elif layer.name in self.run.layers_without_edits:
            return out  # the copies of the negative prompt are not updated either
        masks_fit = not self._has_masks or self.masks_fit(layer)
        tracks = [track for track in self._edits if self._acts(track, layer, masks_fit)]
        _make_keys_and_values(layer, tracks)
        if layer.has_attention_override:
            out = out.clone()  # the pack that computed it may keep it
        for chunk in self.chunks:
            rows, position, outs, weights = chunk.rows, chunk.position, [], []
            for track in tracks:
                if track.chunk is chunk and track.v is not None:
                    outs.append(layer.attend(layer.q[rows], track.k, track.v, position, track.text.mask))
                    weight = track.mixed.weight
                    weights.append(self._weight(track.mixed.edits, chunk, layer) if weight is None else weight)
            if outs and self.limits_norm:
                self.mix_within_norm(out[rows], outs, weights, layer.name)
            elif outs:
                out[rows] += mix_contexts(out[rows], outs, weights)
        changes = self._move_edits(layer, [track for track in tracks if track.updates])
        if self._recorder is not None:
            self._record_safely(self._record_edits, layer, tracks, changes)
        return out

    def mix_within_norm(
        self, main: Tensor, edits: Sequence[Tensor], weights: Sequence[float | Tensor], layer: str
    ) -> None:
        """Mix edits' outputs into a layer's own, in place, within the least of the edits' limits; all [b, n, (h d)]."""
        limits = [edit.composition.norm_limit or math.inf for edit in self._mixed_in(None, layer).edits]
        main.copy_(within_norm(main + mix_contexts(main, edits, weights), main, min(limits)))

    def _acts(self, track: ContextTrack, layer: TextAttention, masks_fit: bool) -> bool:
        """Whether a track is mixed or moves in a layer; sets what is read there."""
        track.k = track.v = None
        key = (track.edit, layer.name if self._chooses_layers else "")
        mixed = track.mixed = self._mixed.get(key) or self._mixed_in(track.edit, layer.name)
        if not masks_fit:
            track.mixed = mixed._replace(edits=[edit for edit in mixed.edits if edit.mask is None])
        if not track.mixed.edits and (mixed.edits or not track.updates):
            return False
        if track.edit is not None:
            track.text = track.texts[layer.stream]
            if track.text.context.dtype != layer.context.dtype and not self.texts:
                track.text = EncodedText(self.run.cache.edit_rows(track.edit, track.chunk, layer.context))
            track.read = track.at(track.text.context, layer.stream)
            return True
        rows = track.chunk.rows
        track.text = _rows_of(layer, rows)
        if not track.changes.get(layer.stream) and not self._has_moved(layer, track.chunk):
            track.read, track.k = rows, layer.k[rows]  # a copy that equals the prompt has the prompt's outputs
            return bool(track.updates)
        if not track.fit(layer.context.shape[1], layer.stream):
            self.run.notices.warn_once(notices.EDITS_NEGATIVE_LENGTH)
            return False
        track.read = track.at(track.text.context, layer.stream)
        return True

    def _has_moved(self, layer: TextAttention, chunk: Chunk) -> bool:
        """Whether the prompts' update has moved a chunk's rows of a layer's context."""
        is_changed = layer.context.shape in self._prompts.changes.get(layer.stream, {})
        return is_changed and any(chunk in update.chunks for update in self._prompts.updates)

    def _move_edits(self, layer: TextAttention, tracks: Sequence[ContextTrack]) -> Mapping[ContextTrack, Tensor]:
        """Move the tracks' contexts -> their changes in the layer [b, t, c], in units of the scale."""
        if not tracks:
            return {}
        steps = []
        for track in tracks:
            (update,) = track.updates
            repeats = self._layer_repeats(layer) if track.edit is None else None  # edits are never repeated
            steps.append(
                key_step(
                    track.k,
                    layer.q[update.rows],
                    layer.heads,
                    layer.attend_exchanged,
                    update.gamma_attn,
                    update.gamma_norm if not layer.normalises_keys else self._no_gamma_norm(update),
                    repeats=None if repeats is None else repeats[update.rows],
                    energy=self._energy,
                )
            )
        read, words = [track.read for track in tracks], [track.text.words for track in tracks]
        changes = dict(zip(tracks, layer.pullback(steps, read, words), strict=True))
        for track, change in changes.items():
            track.move(change, layer.stream)
        return changes

    def weight_of(self, edit: Edit, chunk: Chunk, image: ImageTokens, masks_fit: bool) -> float | Tensor:
        """The weight of an edit for a prompt in a layer; under a mask, for each image token, [b, n, 1].

        masks_fit: where the masks do not fit, edits with a mask have no weight.
        """
        mixed = [one for one in self._mixed_in(edit, image.name).edits if masks_fit or one.mask is None]
        return self._weight(mixed, chunk, image) if mixed else 0.0

    def _weight(self, edits: Sequence[Edit], chunk: Chunk, image: ImageTokens) -> float | Tensor:
        """The sum of the weights of edits for a prompt; where one has a mask, for each image token, [b, n, 1]."""
        return composition_weight_sum([
            self._weights[edit] * (1.0 if edit.mask is None else self._mask_rows(edit.mask, [chunk], image))
            for edit in edits
        ])

    def masks_fit(self, image: ImageTokens) -> bool:
        """Whether the masks of the edits that a layer mixes in fit its image tokens; a warning where they do not."""
        edits = self._mixed_in(None, image.name).edits
        if _is_on_grid(image) or all(edit.mask is None for edit in edits):
            return True
        self.run.notices.warn_once(notices.EDITS_MERGED if image.grid != () else notices.MASKS_WITHOUT_PICTURE)
        return False

    # --- what is known about a layer ---

    def _are_as_long(self, token_weights: Mapping[Chunk, Tensor], layer: TextAttention) -> bool:
        """Whether it is known which of the layer's tokens the token weights are for."""
        return self._has_own_lengths(layer) or {w.shape[1] for w in token_weights.values()} == {layer.k.shape[1]}

    def _has_own_lengths(self, layer: TextAttention) -> bool:
        """Whether the layer's context has the call's tokens, so that it is known whose word each of them is."""
        return layer.context.shape[:2] == self._network_context.shape[:2]

    def _mask_rows(self, mask: Tensor, chunks: Sequence[Chunk], image: ImageTokens) -> Tensor:
        """Mask [b, height, width] -> [rows of the chunks, n, 1]."""
        rows = self.run.cache.mask_rows(mask, chunks, self.latent_size, image.grid, image.q)
        before = image.tokens_before_grid
        if before is None:
            return rows
        return pad(rows, (0, 0, before, image.q.shape[1] - before - rows.shape[1]))  # tokens of no image have weight 0

    def _known_repeats(self) -> Tensor | None:
        """The copies in each row [b, 1, 1]; None where every row has one. Needs the prompts' own lengths.

        ComfyUI repeats prompts to a common length, which is looked up: another node may have put a text of its own into
        the call.
        """
        tokens = self._network_context.shape[1]
        if all(chunk.entry.tokens == tokens for chunk in self.chunks):
            return None
        return torch.cat([_copies(self._network_context[chunk.rows], chunk.entry.tokens) for chunk in self.chunks])

    def _copies_of(self, chunk: Chunk) -> int:
        """How many copies of a prompt's own tokens its rows hold. The host waits for the device, before the layers."""
        if self._repeats is None:
            return 1
        copies = self._network_context.shape[1] // chunk.entry.tokens
        return copies if copies and bool((self._repeats[chunk.rows] == copies).all()) else 1

    def _layer_repeats(self, layer: TextAttention) -> Tensor | None:
        """The copies of each row's own tokens in the layer's keys, [b, 1, 1]; None where every row has one."""
        if not self._may_repeat:
            return None
        if self._lengths_known and layer.context.shape == self._network_context.shape:
            return self._repeats
        return _found_repeats(layer.context)

    # --- what is recorded ---

    def _record_safely(self, action: Callable[..., None], *arguments: Any) -> None:
        """Run a part of the recording. After an error the run goes on without recording."""
        try:
            action(*arguments)
        except InterruptProcessingException:
            raise
        except Exception:
            self._recorder = None
            self.run.recorder.stop()

    def _start_recording(self, layers: Sequence[str]) -> None:
        call = (layers, self._unread, self.chunks, self._network_context, self._repeats)
        self._recorder = self.run.recorder.call_recorder(*call)

    def _record_edits(
        self, layer: TextAttention, tracks: Sequence[ContextTrack], changes: Mapping[ContextTrack, Tensor]
    ) -> None:
        for track in tracks:
            if track.edit is not None:
                number = self.run.settings.edits.index(track.edit)
                self._recorder.record_edit(layer, number, track, changes.get(track))

    def _record_prompts(self, layer: TextAttention, change: Tensor | None, own_rows: bool) -> None:
        if not own_rows:
            reader = self.run.recorder.reader
            self.run.notices.warn_once(notices.layers_not_read(reader, self._why_rows_unknown))
            return
        self._recorder.record_prompts(layer, self._layer_repeats(layer), change, self._prompts.scale)
        if not self._recorder.wants_maps or layer.grid == ():
            return
        if not self._has_own_lengths(layer):
            self.run.notices.warn_once(notices.MAPS_LENGTHS)
        elif not _is_on_grid(layer):
            self.run.notices.warn_once(notices.MAPS_MERGED)
        else:
            self._recorder.record_maps(layer)
            if not all(map(self._recorder.holds_tokens_of, self.chunks)):
                self.run.notices.warn_once(notices.MAPS_LENGTHS)


def apply_change(context: Tensor, change: Tensor) -> Tensor:
    """context [b, t, c] + its change, in the context's type."""
    return (context + change).to(context.dtype)


def accumulate(change: Tensor | None, step: Tensor, scale: float) -> Tensor:
    """change + scale * step, in float32 at least: the sum of many small steps."""
    if change is None:
        return step.to(torch.promote_types(step.dtype, torch.float32)) * scale
    return torch.add(change, step, alpha=scale)


def _make_keys_and_values(layer: TextAttention, tracks: Sequence[ContextTrack]) -> None:
    """The tracks' keys, and the values of those that are mixed in."""
    read = [track for track in tracks if track.k is None]
    for track, k in zip(read, layer.keys([track.read for track in read]), strict=True):
        track.k = k
    mixed = [track for track in read if track.mixed.edits]
    if layer.value_context is layer.context:
        contexts = [track.read for track in mixed]
    else:
        contexts = [track.read if track.edit is not None else _value_text(layer, track) for track in mixed]
    for track, v in zip(mixed, layer.values(contexts), strict=True):
        track.v = v


def _value_text(layer: TextAttention, track: ContextTrack) -> Tensor:
    """What the values of a prompt's copy are made of [b, t, c], where keys and values have texts of their own."""
    rows = track.chunk.rows
    own = layer.value_context[rows]
    return own if layer.values_follow is None else torch.where(layer.values_follow[rows], track.read, own)


def _rows_of(layer: TextAttention, rows: slice) -> EncodedText:
    """The text of some of a layer's rows."""
    mask, words = layer.text_mask, layer.words
    return EncodedText(
        layer.context[rows], None if mask is None else mask[rows], None if words is None else words[rows]
    )


def _is_on_grid(image: ImageTokens) -> bool:
    """Whether the image tokens of a layer are the positions of its grid, so that masks and maps fit."""
    if not image.grid:
        return False
    tokens, before = math.prod(image.grid), image.tokens_before_grid
    return image.q.shape[1] == tokens if before is None else image.q.shape[1] >= before + tokens


def _copies(text: Tensor, own: int) -> Tensor:
    """How many copies of its first `own` tokens each row of a text [b, t, c] holds -> [b, 1, 1]."""
    tokens = text.shape[1]
    if tokens % own:
        return _found_repeats(text)
    return torch.where(_is_repeated(text, own), float(tokens // own), 1.0).view(-1, 1, 1)


def _is_repeated(text: Tensor, own: int) -> Tensor:
    """Whether each row of a text [b, t, c] repeats its first `own` tokens -> [b]."""
    return (text[:, own:] == text[:, : text.shape[1] - own]).all(dim=2).all(dim=1)


def _found_repeats(context: Tensor) -> Tensor:
    """How often each row of a context [b, t, c] repeats its first tokens -> [b, 1, 1].

    ComfyUI batches prompts up to four times as long as the first: the least common multiple of three lengths can be
    twelve times the shortest.
    """
    tokens = context.shape[1]
    repeats = torch.ones(context.shape[0], dtype=torch.float32, device=context.device)
    for count in range(2, 13):
        if tokens % count == 0:
            repeats = torch.where(_is_repeated(context, tokens // count), float(count), repeats)
    return repeats.view(-1, 1, 1)
