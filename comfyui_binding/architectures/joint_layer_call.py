"""One attention call of a layer with several texts and one image: what each text and the image read, text by text.

The plain form is one ordinary attention call for each text. In the shared form all queries attend to the image's keys
in one call, and the queries of each text and of the image to the keys of that text; the log-sum-exps of the scores say
how the two outputs are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ...ebca_core import attention_over_both
from .host_attention import NOT_OF_A_TEXT, AttentionWithSum, attention_with_sum, by_heads, is_pytorchs

#: The owner of the image's tokens, where texts are numbered.
IMAGE = -1
#: By how much, relative to their norm, outputs of the two forms may differ; in types of less precision, by that.
TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class LayerCall:
    """The plain form.

    attention: the layer's own; q, k, v [b, h, t + n, d] or [b, t + n, (h d)], t of all texts; tokens: the axis of the
    tokens; owners, sizes: of the pieces that follow each other there, each of one text or of the image; mask: of all
    tokens [b or 1, 1, t + n or 1, t + n], from the network; text_masks: where there is none, of each text and the
    image; options: further arguments of the call. k and v may go on with tokens that have no queries, as kept ones of
    reference images: they are the image's.
    """

    attention: Callable[..., Tensor]
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    tokens: int
    owners: Sequence[int]
    sizes: Sequence[int]
    mask: Tensor | None
    text_masks: Sequence[Tensor | None]
    options: Mapping[str, Any]

    @property
    def is_masked(self) -> bool:
        return any(mask is not None for mask in (self.mask, *self.text_masks))

    @property
    def kind(self) -> tuple:
        """What the choice of a kernel depends on, and the numbers of tokens."""
        sizes = tuple(self.key_sizes)
        return self.q.device, self.q.dtype, self.q.shape[-1], self.heads, self.options.get("scale"), sizes

    @cached_property
    def key_owners(self) -> Sequence[int]:
        """As owners, of the keys and values."""
        return (*self.owners, IMAGE) if self.surplus else self.owners

    @cached_property
    def key_sizes(self) -> Sequence[int]:
        return (*self.sizes, self.surplus) if self.surplus else self.sizes

    @property
    def surplus(self) -> int:
        """The number of keys at the end that have no queries."""
        return self.k.shape[self.tokens] - self.q.shape[self.tokens]

    @cached_property
    def _pieces(self) -> list[Sequence[Tensor]]:
        of_each = ((self.q, self.sizes), (self.k, self.key_sizes), (self.v, self.key_sizes))
        return [tensor.split(sizes, dim=self.tokens) for tensor, sizes in of_each]

    def attend(self, text: int, rows: slice, query_owners: Sequence[int] = ()) -> Iterator[tuple[int, Tensor]]:
        """The places of a text's pieces and of the image among all, with their outputs [b, t, (h d)].

        query_owners: the owners of the queries, both of them by default.
        """
        read = [place for place, owner in enumerate(self.key_owners) if owner in (text, IMAGE)]
        asked = [place for place, owner in enumerate(self.owners) if owner in (query_owners or (text, IMAGE))]
        joined = [
            torch.cat([pieces[place][rows] for place in places], dim=self.tokens)
            for pieces, places in zip(self._pieces, (asked, read, read), strict=True)
        ]
        mask = self.text_masks[text] if self.mask is None else _cut(self.mask, self.sizes, asked, read)
        if mask is not None and len(mask) > 1:
            mask = mask[rows]
        out = self.attention(*joined, self.heads, mask=mask, **self.options)
        return zip(asked, out.split([self.sizes[place] for place in asked], dim=1), strict=True)


class SharedLayerCall:
    """The shared form. Made by `shared_form`."""

    def __init__(self, plain: LayerCall, attention: AttentionWithSum, *tensors: Tensor):
        """tensors: the queries, keys and values [b, h, t + n, d]."""
        self._plain = plain
        self._attention = attention
        of_each = (plain.sizes, plain.key_sizes, plain.key_sizes)
        self._queries = tensors[0]
        self._pieces = [one.split(sizes, dim=2) for one, sizes in zip(tensors, of_each, strict=True)]
        #: What `_all_of_image` returns, by the first of the rows: those of two prompts do not overlap.
        self._of_image: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def attend(self, text: int, rows: slice, query_owners: Sequence[int] = ()) -> Iterator[tuple[int, Tensor]]:
        """As `LayerCall.attend`."""
        owners = query_owners or (text, IMAGE)
        of_image = self._all_of_image(rows)
        keys_and_values = self._keys_and_values(text, rows)
        for place, (owner, queries) in enumerate(zip(self._plain.owners, self._pieces[0], strict=True)):
            if owner in owners:
                of_text, text_sum = self._attention(queries[rows], *keys_and_values)
                out = attention_over_both(of_image[place][0], of_text, of_image[place][1], text_sum)
                yield place, out.transpose(1, 2).flatten(2)

    def _all_of_image(self, rows: slice) -> list[tuple[Tensor, Tensor]]:
        """What the queries of each piece read of the image: outputs [b, h, t or n, d] and log-sum-exps."""
        if rows.start not in self._of_image:
            both = self._attention(self._queries[rows], *self._keys_and_values(IMAGE, rows))
            split = (one.split(self._plain.sizes, dim=2) for one in both)
            self._of_image[rows.start] = list(zip(*split, strict=True))
        return self._of_image[rows.start]

    def _keys_and_values(self, owner: int, rows: slice) -> list[Tensor]:
        """Those of a text or of the image, [b, h, t or n, d] each."""
        places = [place for place, one in enumerate(self._plain.key_owners) if one == owner]
        own = ([pieces[place][rows] for place in places] for pieces in self._pieces[1:])
        return [one[0] if len(one) == 1 else torch.cat(one, dim=2) for one in own]

    def agrees(self, texts: Sequence[int], rows: slice) -> bool:
        """Whether all read with the texts what they do in the plain form, up to the rounding of the type.

        The host waits for the device.
        """
        try:
            return all(
                place == same_place and _are_close(piece, plain)
                for text in texts
                for (place, piece), (same_place, plain) in zip(
                    self.attend(text, rows), self._plain.attend(text, rows), strict=True
                )
            )
        except NOT_OF_A_TEXT:
            raise
        except (RuntimeError, TypeError):  # from a call that is not public: another PyTorch may have another one
            return False


def shared_form(plain: LayerCall) -> SharedLayerCall | None:
    """The shared form of an attention call; None where no call of torch gives what it needs."""
    if plain.is_masked or not is_pytorchs(plain.attention):
        return None
    tensors = by_heads(plain.q, plain.k, plain.v, plain.heads, plain.options.get("skip_reshape", False))
    attention = attention_with_sum(*tensors, plain.options.get("scale"))
    return None if attention is None else SharedLayerCall(plain, attention, *tensors)


def _are_close(one: Tensor, other: Tensor) -> bool:
    norm = partial(torch.linalg.vector_norm, dtype=torch.promote_types(other.dtype, torch.float32))
    return bool(norm(one - other) <= max(TOLERANCE, torch.finfo(other.dtype).eps) * norm(other))


def _cut(mask: Tensor, sizes: Sequence[int], asked: Sequence[int], read: Sequence[int]) -> Tensor:
    """A mask [b or 1, 1, n or 1, n] of all tokens, for some of the pieces that they consist of: queries and keys."""
    columns = mask.split(sizes, dim=-1)
    mask = torch.cat([columns[place] for place in read], dim=-1)
    if mask.shape[-2] > 1:
        lines = mask.split(sizes, dim=-2)
        mask = torch.cat([lines[place] for place in asked], dim=-2)
    return mask
