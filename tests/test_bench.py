"""The bench's plain model and its split of a study's time; what it measures is no matter of tests."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import PlainVAE, study_phases
from imavae.config.settings import run_config
from imavae.model import vae
from imavae.rng import stream


def test_plain_model_is_the_ensembles_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config({})
    model = vae.build(config)
    row = model.layout.initial(stream(1, "init"))[None]
    weights = model.layout.views(row)
    weights[vae.GAMMA][:] = torch.tensor(config.model.gamma, dtype=torch.float64).log()
    x, noise = torch.randn(2, 5, config.data.dim, generator=stream(1, "noise"), dtype=torch.float64)

    plain = PlainVAE(config.data.dim, config.model.hidden_factor * config.data.dim, config.model.gamma).double()
    names = {f"{net}.{2 * i}.{kind}": f"{net}.{i}.{kind}" for net in ("encoder", "decoder") for i in (0, 1)
             for kind in ("weight", "bias")}  # fmt: skip
    plain.load_state_dict({theirs: weights[ours][0] for theirs, ours in names.items()})
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    torch.testing.assert_close(plain(x), model.elbo(weights, x.T[None], noise.T[None]).neg_elbo[0])


def test_phases_of_a_study_add_up() -> None:
    reports = [(9.0, "a", 3.0, 1.0), (15.0, "a", 7.0, 2.0), (22.0, "b", 4.0, 0.5)]
    lines = study_phases(2.0, reports, 30.0)
    assert [line.value for line in lines] == pytest.approx([3, 11, 2.5, 1, 2.5, 8, 28, 100 * 11 / 28])
