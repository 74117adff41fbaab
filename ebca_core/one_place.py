"""Whether each object of a prompt is read in one place of the image, from the attention maps of its words.

The step down E(K | Q) assumes this: it moves a token to the mean of the queries under softmax over the image tokens,
and a mean of two separate places is neither. The score needs no gradient and no further call of the model.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor

#: How sharply objects that overlap are distinguished: the power of an object's share of the attention.
SHARPNESS = 3
#: In sides of the image: how far an object reaches from its peak, and from where on a peak is a second one.
REACH, APART = 0.29, 0.36


def one_place_score(objects: Tensor) -> Tensor:
    """The share of the claims near a peak, less the height of the worst second peak: high where each object has one
    place.

    objects [b, i, rows, columns]: the attention to each object's words -> [b], from -1 to 1.
    """
    claimed = claims(objects)
    return near_share(claimed) - second_peak(claimed)


def claims(objects: Tensor) -> Tensor:
    """c_i(n) = (o_i(n) / sum_j o_j(n))^3 * sum_j o_j(n): the attention to an object where it has the most of it.

    objects o [b, i, rows, columns] -> [b, i, rows, columns], in float32 at least.
    """
    objects = objects.to(torch.promote_types(objects.dtype, torch.float32))
    total = objects.sum(dim=1, keepdim=True)
    return _ratio(objects, total) ** SHARPNESS * total


def near_share(claimed: Tensor) -> Tensor:
    """The share of all claims that is within REACH of the peak of any object. claimed [b, i, rows, columns] -> [b]."""
    is_near = (_distances_from_peaks(claimed) <= REACH).any(dim=1)
    total = reduce(claimed, "b i rows columns -> b (rows columns)", "sum")
    return _ratio((total * is_near).sum(dim=1), total.sum(dim=1))


def second_peak(claimed: Tensor) -> Tensor:
    """The highest claim more than APART from the object's peak, over that peak; of the worst object.

    claimed [b, i, rows, columns] -> [b].
    """
    values = rearrange(claimed, "b i rows columns -> b i (rows columns)")
    second = values.masked_fill(_distances_from_peaks(claimed) <= APART, 0.0).amax(dim=2)
    return _ratio(second, values.amax(dim=2)).amax(dim=1)


def peaks(claimed: Tensor) -> Tensor:
    """The position of each object's peak, counted row by row. claimed [b, i, rows, columns] -> [b, i]."""
    return rearrange(claimed, "b i rows columns -> b i (rows columns)").argmax(dim=2)


def _distances_from_peaks(claimed: Tensor) -> Tensor:
    """How far each position is from each object's peak, in sides of the image: [b, i, rows, columns] -> [b, i, n].

    The side of an image that is not square is that of the square of its size.
    """
    rows, columns = claimed.shape[-2:]
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(claimed) / (rows * columns) ** 0.5
    between = (places[:, None] - places).square().sum(dim=2).sqrt()
    return between[peaks(claimed)]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and zero where both are."""
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)
