"""What an architecture gives to a DenoiserCall: one call of a text cross-attention layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

#: A mask that is added to the scores of attention hides tokens below this.
HIDDEN = -1e4


@dataclass(frozen=True, eq=False)
class EncodedText:
    """A text as the layers of a network read it: context [b, t, c], and its attention mask where it has one.

    words [b, t, 1]: 1 for tokens that are words, 0 for others, which are never updated; None where that is not known.
    """

    context: Tensor | None
    mask: Tensor | None = None
    words: Tensor | None = None

    def map_rows(self, take: Callable[[Tensor], Tensor]) -> EncodedText:
        """The text for other rows: `take` of each tensor."""
        tensors = (self.context, self.mask, self.words)
        return EncodedText(*(None if tensor is None else take(tensor) for tensor in tensors))


class ImageTokens(Protocol):
    """The image tokens of a layer: where masks lie on them."""

    #: The layer's name as users write it in `blocks`, with the number of the layer: d1.0, m0.0, b12.0.
    name: str
    #: [b, n, (h d)].
    q: Tensor
    #: Rows and columns of the image tokens, with frames in front for videos; empty where the tokens are no picture's,
    #: None where they are not known.
    grid: tuple[int, ...] | None
    #: Tokens in front of the grid's that belong to no image; None where the grid's must be the only ones.
    tokens_before_grid: int | None


class TextAttention(ImageTokens, Protocol):
    """A text cross-attention layer during one call of the denoiser.

    Shapes: b rows of the batch, n image tokens, t text tokens, (h d) heads and their width, c width of the context.
    """

    #: Which of the network's texts it reads, where there are several: each has a change of its own.
    stream: str
    #: What the layer attends with, besides q: k and v [b, t, (h d)].
    k: Tensor
    v: Tensor
    heads: int
    #: The layer's inputs for keys and values before EBCA's change, [b, t, c]: one tensor unless another pack gives keys
    #: and values different contexts.
    context: Tensor
    value_context: Tensor
    #: Of two contexts: which rows [b, 1, 1] hold one text all the same, so that values follow what changes the keys;
    #: None where the two cannot be compared.
    values_follow: Tensor | None
    #: The attention mask of the layer's text, and which tokens are words (EncodedText); None where it has none.
    text_mask: Tensor | None
    words: Tensor | None
    #: Whether keys are normalised. E(K) is constant then, or picks one token by chance, and is left out.
    normalises_keys: bool
    #: Whether another node has set an attention function of its own for the layer, or replaced its attention.
    has_attention_override: bool

    def keys(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The layer's keys of other contexts: [b, t, c] each -> [b, t, (h d)]."""

    def values(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The layer's values of other contexts: [b, t, c] each -> [b, t, (h d)]."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, position: int | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Attention as the layer computes it, other packs' overrides included -> [b, n, (h d)].

        position: of the prompt whose rows these are; None for all rows of the call. text_mask: of the keys' text.
        """

    def attend_exchanged(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Attention for the update, text tokens over image tokens. Overrides expect the opposite and are not used."""

    def pullback(
        self, steps: Sequence[Tensor], contexts: Sequence[Tensor | slice], words: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        """Steps in the keys [b, t, (h d)] -> steps in the contexts [b, t, c].

        contexts: what each step's keys were made of; a slice stands for these rows of what the layer itself has read.
        words: which of their tokens are words (EncodedText).
        """

    def words_of(self, text: EncodedText) -> Tensor | None:
        """Which tokens of a text are words, [b, t]; None where all of them count, as the padding of U-Nets does."""


def hidden_tokens(text_mask: Tensor) -> Tensor:
    """The tokens that an attention mask of a text hides: [b, ..., t], boolean or added to the scores -> [b, t]."""
    hidden = text_mask == 0 if text_mask.dtype == torch.bool else text_mask < HIDDEN
    return hidden.reshape(text_mask.shape[0], -1, text_mask.shape[-1])[:, 0]
