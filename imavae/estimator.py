"""A VAE as a scikit-learn transformer: X -> z, for pipelines and grid searches.

Several seeds train as one ensemble in this process, and the one with the smallest validation −ELBO is kept. Nothing is
written to disk. For sources, segments, reports and resuming, see :func:`imavae.train`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from imavae.config.data import FileData
from imavae.config.mapping import build
from imavae.config.settings import RunConfig
from imavae.data.dataset import Scaling, Split
from imavae.errors import UserError, require
from imavae.metrics import identifiability
from imavae.model.export import Model
from imavae.rng import stream
from imavae.runs.models import encoded
from imavae.training.ensemble import Ensemble, ensemble, initial_state
from imavae.training.loop import train

Floats = NDArray[np.float64]

GAMMAS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)  # tried by gamma="search": 1/gamma is a noise in standard deviations
VALIDATIONS = 50  # of a whole training
VALIDATED = 10_000  # rows that validate, at most
AGREEING = 20_000  # rows on which seeds are compared, at most
SAMPLES = 10  # of the posterior, per row of a score
SMALLEST = 4  # rows
EPOCH = 1280  # rows of an epoch, at least: fewer are repeated, since an epoch of few steps costs more than its steps


class IMAVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """Independent latents z of observations X by a variational autoencoder (VAE).

    Columns are standardised first. The latents are identified by the decoder's tendency to independent mechanisms, up
    to order, sign and scale (Reizinger et al., NeurIPS 2022).

    Args:
        n_components: number of latents, from 1 to the number of columns; None: as many as columns.
        gamma: γ > 0; 1/γ is the noise that the decoder allows, in standard deviations of a column. ``"search"`` tries
            seven values from 1 to 20.
        prior: of the latents: ``"uniform"`` (on [−½, ½]), ``"gaussian"``, ``"laplace"`` or ``"beta"``.
        n_layers: linear maps in the encoder and in the decoder.
        hidden_factor: width of a hidden layer over the number of latents.
        n_seeds: members, which differ in their initialisation, batches and noise.
        selection: how the search chooses gamma by the medians over seeds: ``"neg_elbo"`` (smallest), or ``"agreement"``
            (largest). Among the seeds of that gamma, the smallest −ELBO decides.
        max_iter: steps of Adam, at most; training stops early where the validation −ELBO no longer falls.
        learning_rate: of Adam.
        batch_size: rows per step.
        validation_fraction: share of the rows that stop and select (at most 10,000 rows).
        random_state: seed or generator of the split and of the members.

    Attributes:
        model_: the best member, a :class:`imavae.Model` in float64.
        gamma_: its γ.
        neg_elbo_: (n_seeds,) validation −ELBO in nats, of standardised columns, of the seeds at ``gamma_``.
        agreement_: (n_seeds,) median MCC of a seed's latents with those of the other seeds at ``gamma_``, in [0, 1],
            over the rows of X (at most 20,000); NaN for a single seed.
        search_: by name, the gammas and the medians of −ELBO and agreement over their seeds.
        n_iter_: steps of the best member.
        n_features_in_: number of columns of X.
        feature_names_in_: their names, if X was a frame.
    """

    def __init__(  # Any: scikit-learn sets parameters of any type, and fit refuses them
        self,
        n_components: Any = None,
        *,
        gamma: Any = 3.0,
        prior: Any = "uniform",
        n_layers: Any = 2,
        hidden_factor: Any = 10,
        n_seeds: Any = 4,
        selection: Any = "neg_elbo",
        max_iter: Any = 10_000,
        learning_rate: Any = 1e-3,
        batch_size: Any = 64,
        validation_fraction: Any = 0.2,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.gamma = gamma
        self.prior = prior
        self.n_layers = n_layers
        self.hidden_factor = hidden_factor
        self.n_seeds = n_seeds
        self.selection = selection
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> IMAVAE:
        """Train on X (n, columns); ``y`` is ignored. Raises ValueError for bad data, parameters, or if all diverge."""
        checked = validate_data(self, X, dtype=np.float64, ensure_min_samples=SMALLEST, ensure_min_features=2)
        x = np.array(checked)  # writable, as torch wants it
        if not 0 < self.validation_fraction < 1 or self.selection not in ("neg_elbo", "agreement"):
            got = f"{self.validation_fraction!r} and {self.selection!r}"
            raise ValueError(f"validation_fraction must be in (0, 1), and selection neg_elbo or agreement; got {got}")
        rng = check_random_state(self.random_state)
        order = rng.permutation(len(x))
        validating = min(max(1, round(len(x) * self.validation_fraction)), VALIDATED, len(x) - 1)
        rows = x[order[validating:]]
        std = rows.std(0)
        scaling = Scaling(torch.from_numpy(rows.mean(0)), torch.from_numpy(np.where(std > 0, std, 1.0)))
        standard = ((torch.from_numpy(x) - scaling.mean) / scaling.std).float()
        repeats = -(-EPOCH // len(rows))
        try:
            points = self._points(x.shape[1], len(rows) * repeats, validating, rng.randint(2**31 - 2**16))
        except UserError as error:
            raise ValueError(str(error)) from None
        members = ensemble(points, "cpu")
        state, shape = initial_state(members), (len(points), self.n_seeds)
        at = torch.from_numpy(order)
        training = standard[at[validating:]].repeat(repeats, 1)
        validation = standard[at[:validating]].T[None].contiguous()
        split = Split(torch.empty(1, len(training), 0), training[None], segments=None, support=None, truth=None)

        def validate(weights: Tensor, active: Tensor) -> dict[str, Tensor]:
            few = [members.members[row].seed for row in active.tolist()]
            return {"val/neg_elbo": _neg_elbo(members, weights, validation, few)}

        for _ in train(members, state, split, points[0].training, validate):
            pass
        best = state.best["val/neg_elbo"]
        values = best.value.reshape(shape).numpy()
        if not np.isfinite(values).any():
            raise ValueError(
                "all seeds diverged: use a smaller gamma or learning_rate, and look for extreme values in X"
            )
        agreement = _agreement(members, best.weights, standard[:AGREEING]).reshape(shape)
        self.search_ = {
            "gamma": np.array([point.model.gamma for point in points]),
            "neg_elbo": np.median(values, 1),
            "agreement": np.median(agreement, 1),
        }
        by_elbo = self.selection == "neg_elbo" or self.n_seeds == 1
        chosen = int(np.argmin(self.search_["neg_elbo"] if by_elbo else -self.search_["agreement"]))
        self.neg_elbo_, self.agreement_ = values[chosen], agreement[chosen]
        self.gamma_ = float(self.search_["gamma"][chosen])
        row = chosen * self.n_seeds + int(np.argmin(values[chosen]))
        weights = {name: w[0] for name, w in members.model.layout.views(best.weights[row : row + 1]).items()}
        about = {"seed": members.members[row].seed, "chosen by": "val/neg_elbo"}
        self.model_ = Model(points[chosen], weights, about, scaling).double().requires_grad_(False)
        self.n_iter_ = int(state.epochs[row]) * -(-len(training) // self.batch_size)
        self._n_features_out = points[0].latents
        return self

    def _points(self, columns: int, rows: int, validating: int, seed: int) -> list[RunConfig]:
        """The settings of each gamma. Raises UserError for wrong parameters."""
        given = {name: v.item() if isinstance(v, np.generic) else v for name, v in self.get_params().items()}
        require(given["max_iter"] >= 1, "max_iter >= 1", given["max_iter"], "leave it at 10,000")
        epochs = max(1, round(given["max_iter"] / -(-rows // max(1, given["batch_size"]))))
        share = rows / (rows + validating)
        mapping: dict[str, Any] = {
            "model": {
                "prior": {"name": given["prior"]},
                "n_layers": given["n_layers"],
                "hidden_factor": given["hidden_factor"],
            },
            "training": {
                "max_epochs": epochs,
                "validate_every": max(1, epochs // VALIDATIONS),
                "learning_rate": given["learning_rate"],
                "batch_size": given["batch_size"],
                "device": "cpu",
            },
            "members": {"seed": [seed + number for number in range(self.n_seeds)]},
            "tracking": {"name": "none"},
        }
        data = FileData(
            dim=columns if given["n_components"] is None else given["n_components"],
            n_obs=rows + validating,
            n_segments=1,
            columns=tuple(map(str, getattr(self, "feature_names_in_", range(columns)))),
            train=share,
            val=(1 - share) * (1 - 1e-9),  # there is no test split
        )
        gammas = GAMMAS if given["gamma"] == "search" else (given["gamma"],)
        return [
            build(RunConfig, {**mapping, "model": {**mapping["model"], "gamma": gamma}, "data": data})
            for gamma in gammas
        ]

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return torch.from_numpy(np.array(validate_data(self, X, dtype=np.float64, reset=False)))

    def transform(self, X: Any) -> Floats:
        """The latents of X, (n, n_components): the posterior's location on the prior's support."""
        x = self._rows(X)
        return np.array(encoded(self.model_, x.T)[: self._n_features_out].T.numpy())

    def inverse_transform(self, X: ArrayLike) -> Floats:
        """Rows in the columns' own units, (n, n_features_in_), that the decoder makes of latents (n, n_components)."""
        check_is_fitted(self)
        z = np.asarray(X, dtype=np.float64)
        if z.ndim != 2 or z.shape[1] != self._n_features_out:
            raise ValueError(f"latents have the shape (n, {self._n_features_out}), but got {z.shape}")
        return np.array(self.model_.decode(torch.from_numpy(z.copy())).numpy())

    def score(self, X: Any, y: Any = None) -> float:
        """The ELBO: a lower bound of the mean log-likelihood of X's rows in nats, in the units of X.

        It estimates the expectation by ten samples of the posterior, the same at each call.
        """
        x, model = self._rows(X), self.model_
        standard = ((x - model.column_mean) / model.column_std).T[None]
        generator, total = stream(int(model.about["seed"]), "evaluation"), 0.0
        for _ in range(SAMPLES):
            noise = torch.randn(1, self._n_features_out, len(x), generator=generator, dtype=torch.float64)
            total -= float(model.architecture.elbo(model.weights, standard, noise).neg_elbo)
        return total / SAMPLES - float(model.column_std.log().sum())


@torch.no_grad()
def _neg_elbo(members: Ensemble, weights: Tensor, x: Tensor, seeds: list[int]) -> Tensor:
    """The −ELBO of each member on rows (1, column, n); its noise is the same at each call."""
    shape = members.model.dim, x.shape[2]
    values = []
    for row, seed in zip(weights, seeds, strict=True):
        noise = torch.randn(shape, generator=stream(seed, "evaluation"))[None]
        values.append(members.model.elbo(members.model.layout.views(row[None]), x, noise).neg_elbo)
    return torch.cat(values).double()


@torch.no_grad()
def _agreement(members: Ensemble, weights: Tensor, x: Tensor) -> Floats:
    """The agreement of each member with the others at its gamma, on rows (n, column)."""
    model, rows = members.model, x.T[None]
    views = [model.layout.views(row[None]) for row in weights]
    z = torch.cat([model.prior.latent(model.posterior(view, rows).mean) for view in views])
    return identifiability.agreement(z, [member.point for member in members.members]).numpy()
