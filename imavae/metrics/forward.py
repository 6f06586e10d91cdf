"""The evaluation of a block of members on a split: forward passes over the points in chunks of fixed size. The
activations stay in the processor's cache, and no Jacobian outlives its chunk.

Images are expensive: of a validation split only the first are used (2,688 images of 3 x 64 x 64), and Jacobians are
taken at the first 320 of any split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from imavae.data.dataset import Split, Truth, chunk
from imavae.metrics import identifiability, ima, linear, regression
from imavae.metrics.identifiability import BATCH
from imavae.model.networks import Weights
from imavae.model.priors import Theta
from imavae.model.vae import GAMMA, Elbo, Posterior
from imavae.training.ensemble import Ensemble, evaluated

if TYPE_CHECKING:
    from imavae.metrics.disentanglement import DCI

VALIDATED = 2**25  # numbers at most in the images of a validation
DIFFERENTIATED = 2**22  # and in those at which Jacobians are taken
INTERIOR = 0.8  # share of a support's half-width that counts as its interior


def shortened(split: Split, observed: int, numbers: int | None = None) -> Split:
    """The part of a split that is evaluated in a validation: of images, the first whole chunks of ``numbers`` numbers
    at most (by default :data:`VALIDATED`).
    """
    size, most = evaluated(observed), VALIDATED if numbers is None else numbers
    return split if split.images is None else split.first(max(1, most // (observed * size)) * size)


class Local(NamedTuple):
    """Functions of the decoder's Jacobian at the locations of m points, or of each of their batches."""

    contrast: ima.Contrast
    batch_unconstrained: Float[Tensor, "member o d batch"]  # by the unconstrained coordinate
    amari: Float64[Tensor, "member m"] | None = None  # if asked for


class Variances(NamedTuple):
    """Variances at each of m points, in the unconstrained coordinate."""

    posterior: Float[Tensor, "member d m"]
    inverse_formula: Float64[Tensor, "member d m"]  # 1 / σ_k² by :func:`ima.inverse_variance`
    batch_ratio: Float64[Tensor, "member d batch"]  # see :func:`ima.batch_ratio`


class Squares(NamedTuple):
    """Squares of an error, averaged over dimensions."""

    mean: Float64[Tensor, " member"]  # over the points, too
    points: Float[Tensor, "member n"]


@dataclass(frozen=True)
class Evaluation:
    """A block of members on one split, of which metrics are functions. One pass gives ELBO and samples; all else is
    computed when a metric first reads it.
    """

    ensemble: Ensemble
    weights: Weights
    split: Split
    world: Int[Tensor, " member"]  # position of each member's world
    elbo: Elbo
    posterior: Posterior  # at each point
    samples: Float[Tensor, "member d n"]
    compared: bool  # True: ``local`` has the Amari distance
    maps: Callable[[], linear.Maps] | None  # of all worlds, if ``linear`` is read
    fits: Callable[[], regression.Fits] | None  # likewise, of ``estimate``
    rendered: Callable[[], Float64[Tensor, " world"]] | None  # c_IMA of the renderer of sprites

    @classmethod
    def over(
        cls,
        ensemble: Ensemble,
        flat: Float[Tensor, "member parameter"],
        split: Split,
        world: Int[Tensor, " member"],
        noise: Float[Tensor, "member d n"],
        compared: bool = False,
        maps: Callable[[], linear.Maps] | None = None,
        fits: Callable[[], regression.Fits] | None = None,
        rendered: Callable[[], Float64[Tensor, " world"]] | None = None,
    ) -> Evaluation:
        """Encode the points, sample with standard normal ``noise``, and decode."""
        model, weights = ensemble.model, ensemble.model.layout.views(flat)
        elbo, posteriors, samples = Elbo(*torch.zeros(3, len(flat), dtype=torch.float64, device=flat.device)), [], []
        for at, share in _chunks(ensemble, split):
            x, u = split.block(world, at), None if split.segments is None else split.segments[world, at]
            q = model.posterior(weights, x)
            y, theta = q.sample(noise[:, :, at]), model.theta(weights, u)
            for total, mean in zip(elbo, model.elbo_at(weights, x, q, y, theta), strict=True):
                total += mean.double() * share
            posteriors.append(q)
            samples.append(model.prior.latent(y))
        # what is None in a chunk is so in all
        parts = (None if part[0] is None else torch.cat(part, 2) for part in zip(*posteriors, strict=True))
        posterior = Posterior._make(parts)
        points, z = (ensemble, weights, split, world), torch.cat(samples, 2)
        return cls(*points, elbo, posterior, z, compared, maps, fits, rendered)

    def first(self, count: int) -> Evaluation:
        """The first points; the ELBO remains that of all points."""
        split, samples = self.split.first(count), self.samples[..., :count]
        posterior = Posterior._make(part if part is None else part[..., :count] for part in self.posterior)
        return dataclasses.replace(self, split=split, posterior=posterior, samples=samples, compared=False)

    def batch(self, points: int) -> int:
        """The batch size of the published estimators on so many points: that of training in multiples of 64."""
        return max(1, min(self.ensemble.config.training.batch_size, points) // BATCH) * BATCH

    @cached_property
    def gamma(self) -> Float[Tensor, " member"]:
        """Square root of the decoder's precision."""
        return self.weights[GAMMA].exp()

    @cached_property
    def sources(self) -> Float[Tensor, "*world s n"]:
        """Sources of the one world that all members share, or of each member's."""
        rows = self.split.sources
        return rows[0].T if len(rows) == 1 else rows[self.world].mT

    @cached_property
    def discrete(self) -> list[bool]:
        """Whether each source is."""
        return [factor.discrete for factor in self.ensemble.config.data.source_factors]

    @cached_property
    def locations(self) -> Float[Tensor, "member d n"]:
        """The posterior's, on the prior's support."""
        return self.ensemble.model.prior.latent(self.posterior.mean)

    @cached_property
    def cdf(self) -> Float[Tensor, "member d n"]:
        """Of the prior at the samples."""
        return self.ensemble.model.prior.cdf(self.samples, self.theta())

    @cached_property
    def prior_variance_of_latents(self) -> Float64[Tensor, "member d"]:
        variance = self.ensemble.model.prior.variance(self.theta()).double()
        return (variance.mean(2) if variance.ndim else variance).expand(self.samples.shape[:2])

    @cached_property
    def standardised_sources(self) -> Float64[Tensor, "*world s n"]:
        return identifiability.standardised(self.sources)

    @cached_property
    def standardised_locations(self) -> Float64[Tensor, "member d n"]:
        return identifiability.standardised(self.locations)

    def correlation(self, z: Float64[Tensor, "member d n"]) -> Float64[Tensor, "member s d"]:
        """Correlation of each source with each standardised latent."""
        return identifiability.standardised_correlation(self.standardised_sources, z, self.sources, self.discrete)

    def probe(self, score: str) -> Float64[Tensor, "member ..."]:
        """A score of :mod:`imavae.metrics.disentanglement`, one member after the other."""
        from imavae.metrics import disentanglement  # takes a second to import

        function, s = getattr(disentanglement, score), self.sources.mT.expand(len(self.samples), -1, -1).cpu().numpy()
        scores = [function(*pair, self.discrete) for pair in zip(s, self.locations.mT.cpu().numpy(), strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    @cached_property
    def dci(self) -> DCI:
        from imavae.metrics.disentanglement import DCI

        return DCI(*self.probe("dci").unbind(1))

    @cached_property
    def linear(self) -> linear.Reference:
        """Scores of linear methods in each member's world: (member,), on the CPU."""
        assert self.maps is not None  # noqa: S101  -- evaluate() has them
        worlds, known = self.world.tolist(), self.split.derived.setdefault("linear", {})
        for world in {*worlds} - known.keys():
            affine, s, one = self.maps()[world], self.split.sources[world].T.cpu(), self.world.new_tensor([world])
            blocks = (self.split.block(one, at)[0].cpu() for at, _ in _chunks(self.ensemble, self.split))
            z = torch.cat([affine[:, :-1] @ x.double() for x in blocks], 1) + affine[:, -1:]
            known[world] = linear.score(z, s, self.discrete)
        return linear.Reference(*torch.tensor([known[world] for world in worlds], dtype=torch.float64).T)

    @cached_property
    def estimate(self) -> regression.Estimate:
        """The estimate of the mixing in each member's world: (member,), on the CPU."""
        assert self.fits is not None  # noqa: S101  -- evaluate() has them
        worlds, of = self.world.cpu().unique(return_inverse=True)  # type: ignore[no-untyped-call]
        found = [regression.contrast(self.fits()[world], self.split, world) for world in worlds.tolist()]
        return regression.Estimate(*torch.tensor(found, dtype=torch.float64)[of].T)

    @cached_property
    def local(self) -> Local:
        """Terms of the decoder's Jacobian at the locations: at all n or, of images, the first m."""
        model, terms = self.ensemble.model, []
        few = shortened(self.split, self.ensemble.config.data.features, DIFFERENTIATED)
        for at, _ in _chunks(self.ensemble, few):
            _, jacobian = model.decoder.jacobian(self.weights, self.locations[..., at])
            unconstrained = jacobian * model.prior.slope(self.posterior.mean[..., at])[:, None]
            decomposed, distance = ima.qr(jacobian), tuple[Tensor, ...]()
            if self.compared:
                truth, regular = self.truth.jacobian[..., at], ~self.true_contrast[:, at].isnan()
                mixing = truth[self.world] if len(truth) > 1 else truth
                distance = (ima.amari_of(decomposed, mixing, regular),)
            terms.append((*ima.contrast_of(decomposed), ima.batch_mean(unconstrained), *distance))
        values, full, norms, means, *rest = (torch.cat(parts, -1) for parts in zip(*terms, strict=True))
        return Local(ima.Contrast(values, full, norms), self._over_batches(means, len(few)), *rest)

    @cached_property
    def batch_jacobian(self) -> Float[Tensor, "member o d batch"]:
        """Mean of the decoder's Jacobian over each batch of posterior samples, as published."""
        decoder, few = (
            self.ensemble.model.decoder,
            shortened(self.split, self.ensemble.config.data.features, DIFFERENTIATED),
        )
        parts = [
            ima.batch_mean(decoder.jacobian(self.weights, self.samples[..., at])[1])
            for at, _ in _chunks(self.ensemble, few)
        ]
        return self._over_batches(torch.cat(parts, -1), len(few))

    def _over_batches(self, means: Float[Tensor, "*k part"], points: int) -> Float[Tensor, "*k batch"]:
        """Means over batches, from those over 64 points: a chunk may be smaller than a batch."""
        return ima.batch_mean(means, self.batch(points) // BATCH)

    @cached_property
    def column_norms(self) -> ima.ColumnNorms:
        return ima.column_norms(self.local.contrast.norms)

    @cached_property
    def variances(self) -> Variances:
        """The posterior's variances at the points that have Jacobians, compared with their formula."""
        at, prior = slice(self.local.contrast.full.shape[1]), self.ensemble.model.prior
        variance, mean = self.posterior.variance()[..., at], self.posterior.mean[..., at]
        curvature, square = prior.curvature(mean, self.theta(at)), self.local.contrast.norms.square()
        inverse = ima.inverse_variance(square, prior.slope(mean), curvature, self.gamma)
        size = self.batch(variance.shape[2])
        batches = self.local.batch_unconstrained, ima.batch_mean(curvature, size), ima.batch_mean(variance, size)
        return Variances(variance, inverse, ima.batch_ratio(*batches, self.gamma))

    @cached_property
    def true_contrast(self) -> Float64[Tensor, "member n"]:
        """c_IMA of the mixing at the sources; NaN where its Jacobian lacks full rank."""
        if "contrast" not in self.split.derived:
            self.split.derived["contrast"] = ima.pointwise_contrast(self.truth.jacobian)
        values: Tensor = self.split.derived["contrast"]
        return values[self.world]

    @property
    def truth(self) -> Truth:
        """Likelihoods and Jacobians of the mixing in each world."""
        assert self.split.truth is not None  # noqa: S101  -- metrics that read it are absent otherwise
        return self.split.truth

    @property
    def mse_obs(self) -> Float64[Tensor, " member"]:
        return self._squares_of_x.mean

    @property
    def mse_obs_interior(self) -> Float64[Tensor, " member"]:
        return self._mean_of_interior(self._squares_of_x)

    @property
    def mse_source(self) -> Float64[Tensor, " member"]:
        return self._squares_of_s.mean

    @property
    def mse_source_interior(self) -> Float64[Tensor, " member"]:
        return self._mean_of_interior(self._squares_of_s)

    @cached_property
    def interior(self) -> Bool[Tensor, "member n"]:
        """Points whose sources are all nearer to the middle of their support than ``INTERIOR`` of its half-width."""
        support = self.ensemble.config.data.support
        assert support is not None  # noqa: S101  -- the metrics that need it are absent then
        middle, half = (support[0] + support[1]) / 2, (support[1] - support[0]) / 2
        inside: Tensor = ((self.split.sources - middle).abs() < INTERIOR * half).all(-1)
        return inside[self.world]

    @cached_property
    def _squares_of_x(self) -> Squares:
        """Of g(mu(x)) - x."""
        decoder = self.ensemble.model.decoder
        return self._squares(
            lambda at: decoder(self.weights, self.locations[..., at]) - self.split.block(self.world, at)
        )

    @cached_property
    def _squares_of_s(self) -> Squares:
        """Of mu(g(s)) - s."""
        model, sources = self.ensemble.model, self.split.sources

        def error(at: slice) -> Float[Tensor, "member d m"]:
            s = chunk(sources, self.world, at)
            return model.prior.latent(model.posterior(self.weights, model.decoder(self.weights, s)).mean) - s

        return self._squares(error)

    def _squares(self, error: Callable[[slice], Tensor]) -> Squares:
        """Mean squares of an error over dimensions and points."""
        means, points = [], []
        for at, share in _chunks(self.ensemble, self.split):
            square = error(at).square()
            means.append(square.mean((1, 2)).double() * share)
            points.append(square.mean(1))
        return Squares(torch.stack(means).sum(0), torch.cat(points, 1))

    def _mean_of_interior(self, squares: Squares) -> Float64[Tensor, " member"]:
        """Mean over the interior; NaN if it has no points."""
        return (squares.points.double() * self.interior).sum(1) / self.interior.sum(1)

    def theta(self, at: slice = slice(None)) -> Theta:
        """The prior's parameters at some of the points."""
        u = self.split.segments
        return self.ensemble.model.theta(self.weights, None if u is None else u[self.world, at])


def _chunks(ensemble: Ensemble, split: Split) -> Iterator[tuple[slice, float]]:
    """The points that go through the networks at once, and their share of all points."""
    n, size = len(split), evaluated(ensemble.config.data.features)
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        yield at, (at.stop - start) / n
