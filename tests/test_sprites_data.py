"""Images as data: what is drawn is what the networks see, members train on it as if alone, metrics are those of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imavae.config.data import SpritesData
from imavae.config.settings import RunConfig
from imavae.data import sprites as drawing
from imavae.data.dataset import Dataset, Split, make, rendered_jacobian
from imavae.data.images import Cache
from imavae.metrics import disentanglement, forward, identifiability, ima
from imavae.metrics.evaluate import posterior_shapes
from imavae.metrics.glossary import DIFFERENTIABLE, METRICS, TOO_SLOW, TRUTH, absent
from imavae.rng import stream
from imavae.runs.session import Session
from imavae.training.ensemble import evaluated
from imavae.training.step import train_epoch
from tests.helpers import plain_model, random_members, sprites, trained, untouched_generators

CPU = torch.device("cpu")
ALL = slice(None)
SHAPES = {"factors": ["x", "y", "hue", "shape"], "shapes": ["square", "triangle", "circle"]}
PUBLISHED = {
    "betas": [2, 15],
    "shapes": ["pentagon"],
    "hue": [0, 1],
    "warp": "projective",
    "hsv_offset": [0.1, -0.2, 0],
}


def data_of(config: RunConfig, dtype: torch.dtype = torch.float64) -> Dataset:
    worlds = config.members.data.seed or (config.data.seed,)
    return make(config.data, worlds, dtype, CPU, Cache(Path(config.output_dir) / "cache"))


def splits(made: Dataset) -> tuple[Split, Split, Split]:
    return made.train, made.val, made.test


def pixels(split: Split, world: int = 0) -> Tensor:
    """All images of a split, (n, o)."""
    return split.block(torch.tensor([world]), ALL)[0].T


def settings_of(config: RunConfig) -> SpritesData:
    assert isinstance(config.data, SpritesData)
    return config.data


@pytest.mark.parametrize(
    "data", [{}, {"transform": "affine"}, SHAPES, PUBLISHED], ids=["plain", "affine", "shapes", "published"]
)
def test_each_image_is_drawn_from_its_own_sources(data: dict[str, object], tmp_path: Path) -> None:
    config = sprites(tmp_path, data=data)
    made = data_of(config)
    assert [len(split) for split in splits(made)] == list(config.data.sizes)
    for split in splits(made):
        scenes = drawing.scenes(
            settings_of(config),
            split.sources[0],
            stream(config.data.seed, "mixing"),
        )
        expected = drawing.render(scenes, settings_of(config)).reshape(len(split), -1) / 255
        np.testing.assert_array_equal(pixels(split).numpy(), expected)
    together = torch.cat([split.sources[0] for split in splits(made)])
    assert len(set(map(tuple, together[:, :2].tolist()))) == config.data.n_obs


def test_a_world_does_not_depend_on_its_company_and_has_a_file_of_its_own(tmp_path: Path) -> None:
    data = {"transform": "projective", "jitter": [0.02, 0.1, 0.1]}
    with untouched_generators():
        several = data_of(sprites(tmp_path, data=data, members={"seed": [1], "data": {"seed": [3, 8]}}))
        alone = data_of(sprites(tmp_path, data={**data, "seed": 8}))
    for one, other in zip(splits(several), splits(alone), strict=True):
        assert torch.equal(one.sources[1], other.sources[0])
        assert torch.equal(pixels(one, 1), pixels(other))
        assert not torch.equal(pixels(one, 0), pixels(one, 1))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_pixels_stay_bytes_in_a_map_that_no_batch_writes_to(tmp_path: Path) -> None:
    made = data_of(sprites(tmp_path, members={"seed": [1], "data": {"seed": [3, 8]}}), torch.float32)
    images = made.train.images
    assert images is not None
    assert made.train.observations.shape[2] == 0
    world, rows = torch.tensor([1, 0, 1]), torch.tensor([[5, 0], [7, 7], [1, 2]])
    for array, _ in images.worlds:
        assert isinstance(array.base, np.memmap) or isinstance(array, np.memmap)
        assert not array.flags.writeable
    batch = images.batch(world, rows)
    assert batch.dtype == torch.float32
    for member in range(3):
        assert torch.equal(batch[member].T, pixels(made.train, int(world[member]))[rows[member]])
    before = pixels(made.train).clone()
    images.block(torch.tensor([0]), slice(4)).zero_()
    assert torch.equal(pixels(made.train), before)
    few = made.train.first(10)
    assert len(few) == 10
    assert torch.equal(pixels(few), before[:10])


def test_segments_go_with_their_images(tmp_path: Path) -> None:
    prior = {"name": "beta", "parameters": "conditional"}
    config = sprites(tmp_path, {"prior": prior}, data={"n_segments": 3, "variances": [0.05, 1.0]})
    made = data_of(config)
    assert made.train.segments is not None
    spread = torch.stack([made.train.sources[0][made.train.segments[0] == u].var(0) for u in range(3)])
    assert (spread.amax(0) / spread.amin(0)).max() > 2  # each segment has variances of its own
    assert set(trained([config]).state.status) == {"finished"}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("model", [{}, {"name": "mlp"}], ids=["conv", "mlp"])
def test_a_member_trains_alone_as_among_others(
    model: dict[str, object], dtype: str, tolerance: float, tmp_path: Path
) -> None:
    settings = {"dtype": dtype, "batch_size": 100}  # what is left over makes a smaller batch
    worlds = {"seed": [3, 8]}
    company = trained([sprites(tmp_path, model, training=settings, members={"seed": [1, 2, 3], "data": worlds})])
    alone = trained([sprites(tmp_path, model, training=settings, data={"seed": 8}, members={"seed": [2]})])
    [row] = [i for i, m in enumerate(company.ensemble.members) if (m.seed, m.world) == (2, 8)]
    assert (company.state.frozen[row] - alone.state.frozen[0]).abs().max() < tolerance
    assert (company.state.frozen[row - 1] - alone.state.frozen[0]).abs().max() > 1e-2


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    config = sprites(tmp_path, training={"max_epochs": 2})
    whole = trained([config])
    broken = Session.start([config], CPU)
    next(broken.train())
    broken.save(tmp_path / "state.pt")
    again = Session.load(tmp_path / "state.pt", CPU)
    for _ in again.train():
        pass
    assert torch.equal(again.state.frozen, whole.state.frozen)


def test_most_likely_gamma_is_that_of_the_reconstructions(tmp_path: Path) -> None:
    session = trained([sprites(tmp_path, {"precision": "mle"}, training={"dtype": "float64"})])
    for row in range(2):
        model = plain_model(session.points[0], session.state.frozen[row : row + 1][0])
        x = pixels(session.data.train)
        assert model.gamma == pytest.approx(float((model(x) - x).square().mean()) ** -0.5, rel=1e-9)


def test_metrics_are_those_of_the_plain_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a validation's points alone, and, where they need Jacobians, of fewer."""
    config = sprites(tmp_path, data={"n_obs": 1280}, training={"dtype": "float64"})
    session = Session.start([config], CPU)
    flat, rows = random_members(config, [1, 2]), torch.arange(2)
    whole = session.evaluate("val", flat, rows)
    monkeypatch.setattr("imavae.training.ensemble.EVALUATED_NUMBERS", 64 * 768)
    assert evaluated(config.data.features) == 64
    for name, value in session.evaluate("val", flat, rows).items():  # the chunks' size changes nothing
        torch.testing.assert_close(value, whole[name], rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(forward, "VALIDATED", 128 * 768)
    monkeypatch.setattr(forward, "DIFFERENTIATED", 64 * 768)
    some = session.evaluate("val", flat, rows)
    assert set(some) == set(whole)
    split, model = session.data.val.first(128), plain_model(config, flat[1])
    assert len(session.data.val) == 256
    x, s = pixels(split), split.sources[0]
    assert float(some["val/mse_obs"][1]) == pytest.approx(float((model(x) - x).square().mean()), rel=1e-9)
    expected = identifiability.mcc(s.T, model.encode(x).T[None])
    assert float(some["val/mcc_mean"][1]) == pytest.approx(float(expected), rel=1e-9)
    _, jacobian = model.architecture.decoder.jacobian(model.weights, model.encode(x[:64]).T[None])
    assert float(some["val/column_norm"][1]) == pytest.approx(float(jacobian.norm(dim=1).mean()), rel=1e-9)
    final = session.evaluate("test", flat, rows)  # all points: Jacobians at some
    x = pixels(session.data.test)
    assert float(final["test/mse_obs"][1]) == pytest.approx(float((model(x) - x).square().mean()), rel=1e-9)
    cycle = (model.encode(model.decode(session.data.test.sources[0])) - session.data.test.sources[0]).square().mean()
    assert float(final["test/mse_source"][1]) == pytest.approx(float(cycle), rel=1e-9)


def test_what_images_cannot_have_is_absent_and_said(tmp_path: Path) -> None:
    config = sprites(tmp_path)
    session = Session.start([config], CPU)
    values = session.evaluate("val", session.state.weights, session.state.active)
    reasons = absent(config, session.data.val.truth is not None)
    assert not set(reasons) & {name.removeprefix("val/") for name in values}
    for metric in METRICS:
        assert TRUTH[0] not in metric.needs or reasons[metric.name] == TRUTH[0].reason
    assert reasons["sap"] == TOO_SLOW
    assert "sap" not in absent(config, False, probes=True)


def test_cima_truth_is_the_contrast_of_the_renderer_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sprites(tmp_path, data={"transform": "affine"}, members={"seed": [1, 2], "data": {"seed": [3, 8]}})
    session = Session.start([config], CPU)
    monkeypatch.setattr(forward, "DIFFERENTIATED", 64 * 768)
    monkeypatch.setattr("imavae.metrics.rendering.DIFFERENTIATED", 64 * 768)
    monkeypatch.setattr("imavae.training.ensemble.EVALUATED_NUMBERS", 64 * 768)
    arguments = session.state.weights, session.state.active
    first = {split: session.evaluate(split, *arguments)[f"{split}/cima_truth"] for split in ("val", "test")}
    sizes = config.data.sizes
    for split, start in (("val", sizes[0]), ("test", sizes[0] + sizes[1])):
        for row, seed in ((0, 3), (2, 8)):
            world = dataclasses.replace(settings_of(config), seed=seed)
            parts = list(rendered_jacobian(world, slice(start, start + 64)))
            expected = ima.pointwise_contrast(torch.cat(parts, -1)[None]).mean()
            torch.testing.assert_close(first[split][row], expected)
    assert len(set(first["val"].tolist())) == 2  # one value for each world
    monkeypatch.setattr("imavae.metrics.rendering.rendered_jacobian", None)  # from now on, from the cache alone
    again = Session.start([config], CPU)
    assert torch.equal(again.evaluate("val", *arguments)["val/cima_truth"], first["val"])


def test_a_discrete_factor_has_no_contrast(tmp_path: Path) -> None:
    assert absent(sprites(tmp_path, data=SHAPES), False)["cima_truth"] == DIFFERENTIABLE.reason
    assert "cima_truth" not in absent(sprites(tmp_path), False)


def test_the_portrait_has_jacobians_of_fewer_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.start([sprites(tmp_path)], CPU)
    rows = torch.arange(2)
    whole = posterior_shapes(session.ensemble, session.state.weights, rows, session.data.val)
    monkeypatch.setattr("imavae.training.ensemble.EVALUATED_NUMBERS", 64 * 768)
    monkeypatch.setattr(forward, "DIFFERENTIATED", 64 * 768)
    few = posterior_shapes(session.ensemble, session.state.weights, rows, session.data.val)
    assert few.latents.shape == whole.latents.shape == (2, 4, 128)
    assert whole.formula is not None
    torch.testing.assert_close(few.formula, whole.formula[..., :64], rtol=1e-4, atol=0)


def test_the_shape_takes_as_many_values_as_there_are_and_is_discrete_to_the_metrics(tmp_path: Path) -> None:
    config = sprites(tmp_path, data=SHAPES, training={"dtype": "float64"})
    assert [factor.discrete for factor in config.data.source_factors] == [False, False, False, True]
    session = Session.start([config], CPU)
    split = session.data.val
    shape = split.sources[0, :, 3]
    third = 1 / 3
    assert sorted(set(shape.tolist())) == pytest.approx([-third, 0, third], abs=1e-12)
    flat, rows = random_members(config, [1]), torch.arange(1)
    values = session.evaluate("val", flat, rows, probes=True)
    model = plain_model(config, flat[0])
    codes, factors = model.encode(pixels(split)).numpy(), split.sources[0].numpy()
    kinds = [False, False, False, True]
    assert float(values["val/sap"][0]) == pytest.approx(disentanglement.sap(factors, codes, kinds), abs=1e-9)
    assert float(values["val/mig"][0]) == pytest.approx(disentanglement.mig(factors, codes, kinds), abs=1e-9)
    dci = disentanglement.dci(factors, codes, kinds)
    assert float(values["val/dci_informativeness"][0]) == pytest.approx(dci.informativeness, abs=1e-9)
    expected = identifiability.mcc(split.sources[0].T, torch.from_numpy(codes.T)[None], kinds)
    assert float(values["val/mcc_mean"][0]) == pytest.approx(float(expected), rel=1e-9)
    renamed = dataclasses.replace(split, sources=split.sources.clone())
    renamed.sources[0, :, 3] = torch.where(shape == 0, 9.0, shape)  # the order of names means nothing
    session.data = dataclasses.replace(session.data, val=renamed)
    for name in ("mcc", "mcc_mean", "mcc_spearman", "mcc_batch", "sap", "mig"):
        again = session.evaluate("val", flat, rows, probes=True)[f"val/{name}"]
        torch.testing.assert_close(again, values[f"val/{name}"], rtol=1e-9, atol=1e-9)


def test_an_epoch_sees_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.start([sprites(tmp_path)], CPU)
    images = session.data.train.images
    assert images is not None
    seen: list[Tensor] = []
    honest = type(images).batch

    def watched(_: object, world: Tensor, rows: Tensor) -> Tensor:
        seen.append(rows)
        return honest(images, world, rows)

    monkeypatch.setattr(type(images), "batch", watched)
    train_epoch(session.ensemble, session.state, session.data.train)
    assert {part.shape[1] for part in seen} == {64}
    order = torch.cat(seen, 1)
    for row in order:
        assert sorted(row.tolist()) == list(range(len(session.data.train)))
    assert not torch.equal(order[0], order[1])
