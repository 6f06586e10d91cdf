"""The linear reference of a world: what linear ICA, PCA and the best linear map recover of its sources.

Three affine maps of the observations x are fitted on the first rows of a world's training split and scored on others:

- linear ICA: scikit-learn's FastICA (Hyvärinen 1999) of the d first principal components, whitened. Of several random
  starts, the one whose components have the largest negentropy Σ_k (E[log cosh y_k] − E[log cosh ν])², ν ~ N(0, 1), is
  kept. This choice needs no sources. Gaussian sources can't be separated by it.
- PCA: the d first principal components.
- least squares: the best affine map from x to the sources. Images have none: they have more numbers than rows.

A world is fitted once: the maps are kept in a file of the cache, named after the rows that they are fitted on. So they
are found again by any process, and never mistaken for those of other data.
"""

from __future__ import annotations

import functools
import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from imavae.data.dataset import Split
from imavae.data.storage import Seal
from imavae.errors import UserError
from imavae.metrics import identifiability

ROWS, NUMBERS = 20_000, 2**24  # of a training split, at most, on which the maps are fitted
RESTARTS = 5
GAUSSIAN = 0.3745672075  # E[log cosh ν]
CACHED = Seal(b"imavae linear maps", 1, "linear maps", *3 * ("fit them again",))

Maps = Float64[Tensor, "world map o1"]  # rows: ICA (d), PCA (d), least squares (d; none for images); offset last


class Reference(NamedTuple):
    """Scores of the three maps, in each world or for each member."""

    mcc_linear_ica: Float64[Tensor, " n"]
    mcc_pca: Float64[Tensor, " n"]
    r2_linear_world: Float64[Tensor, " n"]  # NaN for images


def score(z: Float64[Tensor, "map n"], s: Float[Tensor, "d n"], discrete: Sequence[bool]) -> tuple[float, float, float]:
    """Score what the maps of one world make of n observations: the fields of :class:`Reference`."""
    ica, pca, guess = z[: len(s)], z[len(s) : 2 * len(s)], z[2 * len(s) :]
    r2 = identifiability.explained_variance(s.double(), guess).mean() if len(guess) else torch.nan
    return float(identifiability.mcc(s, ica, discrete)), float(identifiability.mcc(s, pca, discrete)), float(r2)


def maps(train: Split, folder: Path) -> Maps:
    """The maps of each world of a training split whose sources are known, read from ``folder`` or fitted."""
    found = []
    for world in range(len(train.sources)):
        mine = torch.tensor([world])
        rows = min(ROWS, max(1, NUMBERS // train.block(mine, slice(1)).shape[1]))
        x, s = train.block(mine, slice(rows))[0].cpu().contiguous(), train.sources[world, :rows].T.cpu().contiguous()
        fit = functools.partial(_fit, x.double(), s.double(), least_squares=train.images is None)
        found.append(kept("linear", folder, [x, s], fit))
    return torch.stack(found)


def kept(
    kind: str, folder: Path, parts: Sequence[Tensor], fit: Callable[[], NDArray[np.float64]]
) -> Float64[Tensor, ...]:
    """What is fitted on ``parts``, the rows of a world, read from ``folder`` or fitted and written there."""
    digest = hashlib.sha256(f"{kind} maps 1 {tuple(parts[0].shape)} {parts[0].dtype}".encode())
    for part in parts:
        digest.update(part.numpy().data)
    of, known = digest.digest(), None
    file = folder / f"{kind}-{digest.hexdigest()[:32]}.maps"
    with suppress(UserError):  # missing, damaged or of another world
        body = CACHED.read(file)
        known = np.load(io.BytesIO(body[len(of) :])) if body.startswith(of) else None
    if known is None:
        known = fit()
        with suppress(OSError):  # a full or read-only disk: the next process fits them again
            folder.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO(of)
            content.seek(len(of))
            np.save(content, known)
            CACHED.write(file, content.getvalue())
    return torch.from_numpy(known)


def _fit(x: Float64[Tensor, "o n"], s: Float64[Tensor, "d n"], least_squares: bool) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA, FastICA  # takes a second to import
    from sklearn.exceptions import ConvergenceWarning

    pca = PCA(len(s), random_state=0).fit(x.T.numpy())
    std = np.sqrt(pca.explained_variance_)
    whitening = pca.components_ / np.where(std > 1e-6 * std[0], std, np.inf)[:, None]
    white = (x.T.numpy() - pca.mean_) @ whitening.T
    rotations, contrasts = [], []
    for start in range(RESTARTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # Gaussian sources have no best rotation
            rotation = FastICA(whiten=False, random_state=start).fit(white).components_
        y = np.abs(white @ rotation.T)
        log_cosh = y + np.log1p(np.exp(-2 * y)) - np.log(2)
        rotations.append(rotation)
        contrasts.append(float(((log_cosh.mean(0) - GAUSSIAN) ** 2).sum()))
    weights = [rotations[int(np.argmax(contrasts))] @ whitening, whitening]
    offsets = [-weight @ pca.mean_ for weight in weights]
    if least_squares:
        scale = x.std(1, correction=0, keepdim=True)
        scale = torch.where(scale > 0, scale, 1)
        slope, offset = identifiability.least_squares(s, x / scale)
        weights.append((slope / scale.T).numpy())
        offsets.append(offset[:, 0].numpy())
    return np.hstack([np.vstack(weights), np.concatenate(offsets)[:, None]])
