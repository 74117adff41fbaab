"""How a latent consists of an image x0 and noise n at a noise level sigma: x = signal(sigma) * x0 + sigma * n.

Inversion and RePaint change sigma and keep x0 and n, so that one formula serves both forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Noising:
    """x = signal(sigma) * x0 + sigma * n, with n standard normal.

    Args:
        signal: sigma -> the factor of the image x0.
        noise: (x, derivative, sigma) -> the noise n in x, from the derivative dx/dsigma = (x - x0) / sigma that
            samplers use.
    """

    signal: Callable[[Tensor], Tensor | float]
    noise: Callable[[Tensor, Tensor, Tensor], Tensor]

    def signal_ratio(self, sigma: Tensor, sigma_next: Tensor) -> Tensor | float:
        """signal(sigma_next) / signal(sigma): the factor that the image in x changes by."""
        return self.signal(sigma_next) / self.signal(sigma)


#: x = x0 + sigma * n: models that predict noise (eps) or v, EDM and Cosmos. The derivative is the noise.
ADDITIVE = Noising(signal=lambda sigma: 1.0, noise=lambda x, derivative, sigma: derivative)

#: Flow matching, x = (1 - sigma) * x0 + sigma * n with sigma from 0 to 1. The derivative is the velocity n - x0.
FLOW = Noising(signal=lambda sigma: 1 - sigma, noise=lambda x, derivative, sigma: x + (1 - sigma) * derivative)
