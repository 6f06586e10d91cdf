"""Solutions to compare found decoders with, in a world whose mixing f is known: f, and spurious ones.

All of them explain the observations equally well. As decoders of a VAE whose precision tends to infinity, with its best
encoder, they have −ELBO* = −E[log p(x)] + E[c_IMA] (:mod:`imavae.metrics.ima`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from imavae.config.data import Automorphism, SyntheticData
from imavae.data import dataset
from imavae.data.mixings import darmois
from imavae.data.sources import Normalised
from imavae.metrics import identifiability, ima

POINTS = 2000  # observations over which means are taken
ANGLES = (15, 30, 45, 60, 75, 90)  # of automorphisms, in degrees


class Reference(NamedTuple):
    """A decoder that generates the observations' law from independent latents."""

    name: str
    cima: float  # E[c_IMA] in nats
    mcc: float  # of its latents with the true sources


def references(data: SyntheticData) -> list[Reference]:
    """The true mixing f, f ∘ a of automorphisms a of the first two sources, and the Darmois construction.

    The last is there in two and three dimensions. Data with segments have f alone: the others would have to keep the
    law p(x|u) of each segment.
    """
    drawn = dataset.world(data)
    f, s, x = drawn.mixing, drawn.sources[:POINTS], drawn.observations[:POINTS]
    found = [Reference("truth", _contrast(f.jacobian(s)), 1.0)]
    if data.n_segments > 1:
        return found
    for angle in ANGLES if isinstance(drawn.source, Normalised) else ():
        spurious = dataset.turned(f, Automorphism(angle=angle), data.source)
        z = spurious.inverse(x)
        found.append(Reference(f"f ∘ a, {angle}°", _contrast(spurious.jacobian(z)), _mcc(s, z)))
    if data.dim == data.features and data.dim in darmois.CELLS:
        low, high = drawn.observations.min(0).values, drawn.observations.max(0).values

        def log_prob(at: Tensor) -> Tensor:
            z = f.inverse(at)
            return torch.sub(drawn.source.log_prob(z), f.log_det(z))

        construction = darmois.OfDensity.on_box(log_prob, low, high)
        u, jacobian = construction.forward(x), construction.jacobian(x)
        good = u.isfinite().all(1) & (jacobian.diagonal(dim1=1, dim2=2) > 0).all(1) & jacobian.isfinite().all((1, 2))
        cima = _contrast(torch.linalg.inv(jacobian[good]))
        found.append(Reference("Darmois", cima, _mcc(s[good], _with_law(u[good], drawn.source))))
    return found


def _with_law(u: Float64[Tensor, "n d"], source: object) -> Float64[Tensor, "n d"]:
    """Uniform variables, mapped onto the law of the sources where its quantiles are known."""
    return source.from_normal(torch.special.ndtri(u)) if isinstance(source, Normalised) else u


def _contrast(jacobian: Float64[Tensor, "n d d"]) -> float:
    at = ima.contrast(jacobian.permute(1, 2, 0)[None])
    return float(ima.mean_where(at.values, at.full))


def _mcc(s: Float64[Tensor, "n d"], z: Float64[Tensor, "n d"]) -> float:
    return float(identifiability.mcc(s.T, z.T[None]))
