"""Sprites: what each factor does to an image, and the maps that may come before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy import ndarray
from torch import Tensor

from imavae.config.data import SpritesData
from imavae.config.mapping import build
from imavae.data import dataset, sources, sprites
from imavae.data.images import Cache
from imavae.data.sources import BetaSource, UniformSource
from imavae.errors import UserError
from imavae.metrics import ima
from imavae.rng import stream
from tests.helpers import untouched_generators
from tests.pages import ROOT, blocks

SUPPORT = (-0.5, 0.5)
LEVEL = 1 / 255  # of a byte
TURNED: dict[str, Any] = {"dim": 5, "factors": ("x", "y", "size", "hue", "angle")}
SHAPED: dict[str, Any] = {
    "dim": 5,
    "factors": ("x", "y", "size", "hue", "shape"),
    "shapes": ("square", "triangle", "circle"),
}
SETTINGS = [
    SpritesData(),
    SpritesData(shapes=("triangle",)),
    SpritesData(shapes=("circle",)),
    SpritesData(**TURNED),
    SpritesData(**TURNED, shapes=("triangle",), side=48),
    SpritesData(**SHAPED),
    SpritesData(**TURNED, shapes=("pentagon",)),
]
each_kind = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join((*s.shapes, *s.factors[4:])))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(settings: SpritesData, n: int, seed: int = 0) -> Tensor:
    """Uniform sources on the support, of all factors."""
    return torch.rand(n, len(settings.factors), generator=generator(seed), dtype=torch.float64) - 0.5


def rendered(settings: SpritesData, s: Tensor, seed: int = 0) -> ndarray:
    """Images in [0, 1]."""
    return sprites.render(sprites.scenes(settings, s, generator(seed)), settings) / 255


def along(settings: SpritesData, name: str, at: Tensor, rest: Tensor) -> Tensor:
    """Sources that differ in one factor alone."""
    s = rest.repeat(len(at), 1)
    s[:, settings.factors.index(name)] = at
    return s


@each_kind
@pytest.mark.parametrize(("name", "axis"), [("x", 3), ("y", 2)])
def test_moving_by_whole_pixels_shifts_the_image_by_as_many(settings: SpritesData, name: str, axis: int) -> None:
    ends = torch.tensor([[-0.5], [0.5]], dtype=torch.float64).repeat(1, len(settings.factors))
    low, high = sprites.scenes(settings, ends, generator()).centre[:, 0].tolist()
    for rest in drawn(settings, 5):
        at = -0.3 + torch.tensor([0, 1, 4], dtype=torch.float64) / (high - low)
        images = rendered(settings, along(settings, name, at, rest))
        assert images[0].sum() > 0
        for moved, pixels in zip(images[1:], (1, 4), strict=True):
            np.testing.assert_allclose(moved, np.roll(images[0], pixels, axis - 1), atol=1.01 * LEVEL)


@each_kind
def test_a_sprite_lies_inside_wherever_its_factors_take_it(settings: SpritesData) -> None:
    corners = (drawn(settings, 300) > 0).double() - 0.5
    corners[:, 4:] = drawn(settings, 300)[:, 4:]  # any angle, any shape
    scenes = sprites.scenes(settings, corners, generator())
    cover = rendered(settings, corners).max(1)
    area = (2 * scenes.half.astype(float)) ** 2
    np.testing.assert_allclose(cover.sum((1, 2)), area, rtol=0.03)  # nothing is cut off; all shapes have one area
    assert cover.max() == 1


@pytest.mark.parametrize("shape", sprites.SHAPES)
def test_a_shape_in_the_middle_is_its_own_mirror_image(shape: Any) -> None:
    settings = SpritesData(dim=2, factors=("size", "hue"), shapes=(shape,))
    images = rendered(settings, drawn(settings, 5))
    np.testing.assert_allclose(images, images[..., ::-1], atol=1.01 * LEVEL)
    upside_down = np.abs(images - images[..., ::-1, :]).max()
    assert upside_down > 0.5 if shape in ("triangle", "pentagon") else upside_down < 1.01 * LEVEL


@pytest.mark.parametrize("shape", sprites.SHAPES)
def test_the_mass_is_the_area_and_grows_with_size(shape: Any) -> None:
    settings = SpritesData(shapes=(shape,), hue=(0.0, 0.1))
    at = torch.linspace(-0.5, 0.5, 30, dtype=torch.float64)
    images = rendered(settings, along(settings, "size", at, torch.full((4,), 0.1, dtype=torch.float64)))
    mass = images[:, 0].sum((1, 2))
    expected = (2 * 64 * np.linspace(0.1, 0.2, 30)) ** 2
    assert (np.diff(mass) > 0).all()
    np.testing.assert_allclose(mass, expected, rtol=2e-3 if shape == "square" else 0.02)


@each_kind
def test_hue_changes_the_colour_and_not_the_mask(settings: SpritesData) -> None:
    at = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
    for rest in drawn(settings, 3):
        images = rendered(settings, along(settings, "hue", at, rest))
        np.testing.assert_array_equal(images.max(1) > 0, np.broadcast_to(images[:1].max(1) > 0, images.max(1).shape))
        np.testing.assert_allclose(images.max(1), np.repeat(images[:1].max(1), 9, 0), atol=1.01 * LEVEL)  # value is 1
        colours = images.reshape(9, 3, -1)[..., images[0].max(0).argmax()]
        distances = np.abs(colours[:, None] - colours[None]).max(2) + 2 * np.eye(9)
        assert distances.min() > 0.25  # every hue is another colour, also the last and the first


@each_kind
def test_images_depend_continuously_on_every_factor_but_the_shape(settings: SpritesData) -> None:
    step = 2e-3  # moves no edge by more than 64 of it, in pixels, and no colour by more than 6
    for number in (i for i, name in enumerate(settings.factors) if name != "shape"):
        s = drawn(settings, 40) * 0.9
        other = s.clone()
        other[:, number] += step
        assert np.abs(rendered(settings, other) - rendered(settings, s)).max() <= 64 * step + LEVEL


@each_kind
def test_every_factor_changes_the_image(settings: SpritesData) -> None:
    for number in range(len(settings.factors)):
        s = drawn(settings, 5) * 0.5
        other = s.clone()
        other[:, number] = 0.49
        assert (np.abs(rendered(settings, other) - rendered(settings, s)).max((1, 2, 3)) > 0.3).all()


@pytest.mark.parametrize("shape", ["square", "triangle", "pentagon"])
def test_a_sprite_that_is_turned_by_its_symmetry_is_itself_again(shape: Any) -> None:
    settings = SpritesData(**TURNED, shapes=(shape,), angle=(0.0, 0.999999))
    at = torch.tensor([-0.5, 0.5, 0.0], dtype=torch.float64)
    first, last, half = rendered(settings, along(settings, "angle", at, drawn(settings, 1)[0]))
    np.testing.assert_allclose(first, last, atol=1.01 * LEVEL)
    assert np.abs(first - half).max() > 0.5


def test_a_whole_turn_of_hue_returns_to_the_same_colour() -> None:
    settings = SpritesData(hue=(0.2, 1.2))
    at = torch.tensor([-0.5, 0.5, 0.0], dtype=torch.float64)
    first, last, half = rendered(settings, along(settings, "hue", at, drawn(settings, 1)[0]))
    np.testing.assert_allclose(first, last, atol=1.01 * LEVEL)
    assert np.abs(first - half).max() > 0.5


def test_ranges_of_x_and_y_are_shares_of_the_room() -> None:
    whole, part = SpritesData(), SpritesData(x=(0.25, 0.75), y=(0.5, 1.0))
    s = drawn(whole, 50)
    mapped = s.clone()
    mapped[:, 0], mapped[:, 1] = s[:, 0] / 2, s[:, 1] / 2 + 0.25
    one, other = sprites.scenes(part, s, generator()), sprites.scenes(whole, mapped, generator())
    np.testing.assert_allclose(one.centre, other.centre, rtol=1e-6)
    left_out = SpritesData(dim=2, factors=("size", "hue"), x=(0.0, 0.5))
    room = sprites.scenes(whole, torch.tensor([[-0.25, 0, 0, 0]], dtype=torch.float64), generator())
    middle = sprites.scenes(left_out, torch.zeros(1, 2, dtype=torch.float64), generator())
    np.testing.assert_allclose(middle.centre, room.centre)  # it stays at the middle of its range


def test_a_constant_offset_changes_all_colours_alike() -> None:
    s = drawn(SpritesData(), 100)
    one = sprites.scenes(SpritesData(hue=(0.1, 0.5)), s, generator())
    turned = sprites.scenes(SpritesData(hue=(0.0, 0.4), hsv_offset=(0.1, 0.0, 0.0)), s, generator())
    np.testing.assert_allclose(turned.colour, one.colour, atol=1e-6)
    paler = sprites.scenes(SpritesData(hue=(0.1, 0.5), hsv_offset=(0.0, -0.25, -0.5)), s, generator())
    np.testing.assert_allclose(paler.colour, 0.5 * (1 - 0.75 * (1 - one.colour)), atol=1e-6)


@pytest.mark.parametrize("segments", [1, 3])
def test_each_factor_has_a_beta_law_of_its_own_in_each_segment(segments: int) -> None:
    data = SpritesData(n_obs=9000, n_segments=segments, betas=(2.0, 15.0), source=BetaSource(low=1.0, high=4.0), seed=7)
    source, s, u = dataset._draw_sources(data)
    assert isinstance(source, sources.Beta)
    assert (u is None) == (segments == 1)
    seen = set()
    log_p = torch.zeros(len(s), dtype=torch.float64)
    for segment in range(segments):
        rows = torch.ones(len(s), dtype=torch.bool) if u is None else u == segment
        for factor in range(data.dim):
            [alpha], [beta] = (set(t.expand_as(s)[rows, factor].tolist()) for t in (source.alpha, source.beta))
            assert 2 <= min(alpha, beta) <= max(alpha, beta) <= 15
            law = scipy.stats.beta(alpha, beta, 1.0, 3.0)
            assert scipy.stats.kstest(s[rows, factor].numpy(), law.cdf).pvalue > 1e-3
            log_p[rows] += torch.from_numpy(law.logpdf(s[rows, factor].numpy()))
            seen |= {alpha, beta}
    assert len(seen) == 2 * segments * data.dim
    torch.testing.assert_close(source.log_prob(s), log_p)
    other, *_ = dataset._draw_sources(replace(data, seed=8))
    assert isinstance(other, sources.Beta)
    assert not torch.equal(other.alpha, source.alpha)  # another world has other laws


def test_the_shape_is_the_level_of_its_sources_interval() -> None:
    settings = SpritesData(**SHAPED)
    at = torch.tensor([-0.5, -0.17, -0.16, 0.0, 0.16, 0.17, 0.5], dtype=torch.float64)
    s = along(settings, "shape", at, torch.zeros(5, dtype=torch.float64))
    assert sprites.scenes(settings, s, generator()).shape.tolist() == [0, 0, 1, 1, 1, 2, 2]
    for level, shape in enumerate(settings.shapes):
        alone = SpritesData(shapes=(shape,), dim=2, factors=("size", "hue"))  # at the middle of the image
        mixed = rendered(settings, s[[0, 3, 6]])[level]
        np.testing.assert_array_equal(mixed, rendered(alone, torch.zeros(1, 2, dtype=torch.float64))[0])


def test_a_factor_that_is_left_out_stays_in_the_middle_and_the_angle_at_zero() -> None:
    settings, all_ = SpritesData(dim=2, factors=("hue", "x")), SpritesData()
    s = drawn(settings, 6)
    full = torch.zeros(6, 4, dtype=torch.float64)
    full[:, 0], full[:, 3] = s[:, 1], s[:, 0]
    np.testing.assert_array_equal(rendered(settings, s), rendered(all_, full))


def test_the_support_is_mapped_linearly_onto_the_ranges() -> None:
    settings, s = SpritesData(), drawn(SpritesData(), 50)
    one = sprites.scenes(settings, s, generator())
    moved = SpritesData(source=UniformSource(low=2.0, high=5.0))
    other = sprites.scenes(moved, 2 + 3 * (s + 0.5), generator())
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(one.half, 64 * (0.15 + 0.1 * s[:, 2].numpy()), rtol=1e-6)


def test_colours_are_those_of_the_colour_wheel() -> None:
    hue = np.array([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1 / 12, 0, 0, 0])
    saturation, value = np.ones(10), np.ones(10)
    saturation[7], value[8], saturation[9] = 0.25, 0.5, -3
    expected = [[1.0, 0, 0], [1.0, 1, 0], [0.0, 1, 0], [0.0, 1, 1], [0.0, 0, 1], [1.0, 0, 1], [1.0, 0.5, 0]]
    expected += [[1.0, 0.75, 0.75], [0.5, 0.0, 0.0], [1.0, 1.0, 1.0]]
    np.testing.assert_allclose(sprites.rgb(hue, saturation, value), expected, atol=1e-12)


def test_jitter_changes_the_colour_and_nothing_else() -> None:
    plain, noisy = SpritesData(), SpritesData(jitter=(0.02, 0.1, 0.1))
    s = drawn(plain, 400)
    one, other = (sprites.scenes(settings, s, generator()) for settings in (plain, noisy))
    for name in ("centre", "half", "angle", "shape"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (np.abs(one.colour - other.colour).max(1) > 0).all()
    value = other.colour.max(1)  # that of HSV
    assert np.abs((1 - value) / 0.1).max() < 5
    np.testing.assert_allclose(np.sqrt(np.mean(((1 - value) / 0.1) ** 2)), 1, atol=0.15)
    assert not np.array_equal(other.colour, sprites.scenes(noisy, s, generator(1)).colour)


@pytest.mark.parametrize("projective", [False, True])
@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_map_of_the_factors_fills_the_cube_and_keeps_lines(projective: bool, dim: int, seed: int) -> None:
    f = sprites.draw_map(projective, dim, generator(seed))
    t = torch.rand(2000, dim, generator=generator(9), dtype=torch.float64)
    mapped = f(t)
    assert 0 <= float(mapped.min()) <= float(mapped.max()) <= 1
    corners = f((t > 0.5).double())
    torch.testing.assert_close(corners.amin(0), torch.zeros(dim, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(corners.amax(0), torch.ones(dim, dtype=torch.float64), atol=1e-12, rtol=0)
    start, end = t[:1000], t[1000:]
    between = f(0.3 * start + 0.7 * end)
    chord, part = f(end) - f(start), between - f(start)
    share = (part * chord).sum(1, keepdim=True) / chord.square().sum(1, keepdim=True)
    torch.testing.assert_close(part, share * chord, atol=1e-10, rtol=0)  # a line's points stay on a line
    even = bool(((share - 0.7).abs() < 1e-9).all())
    assert even != projective  # an affine map keeps the ratio on it, too


@pytest.mark.parametrize("transform", ["affine", "projective"])
def test_a_transformed_world_is_the_plain_one_of_the_mapped_factors(transform: Any) -> None:
    plain, turned = SpritesData(**SHAPED), SpritesData(**SHAPED, transform=transform)
    s = drawn(plain, 30)
    f = sprites.draw_map(transform == "projective", 4, generator(3))
    mapped = torch.cat([f(s[:, :4] + 0.5) - 0.5, s[:, 4:]], 1)  # the shape is left alone
    np.testing.assert_allclose(rendered(turned, s, seed=3), rendered(plain, mapped), atol=1.01 * LEVEL)
    assert np.abs(rendered(turned, s, seed=3) - rendered(plain, s)).max() > 0.5


@pytest.mark.parametrize("warp", ["affine", "projective"])
@pytest.mark.parametrize("seed", range(4))
def test_a_warp_takes_each_sprite_to_its_place(warp: Any, seed: int) -> None:
    plain, warped = SpritesData(size=(0.05, 0.1)), SpritesData(size=(0.05, 0.1), warp=warp, seed=seed)
    s = drawn(plain, 60)
    to, before, after = sprites.draw_warp(warped), rendered(plain, s).max(1), rendered(warped, s).max(1)
    pixels = torch.arange(64, dtype=torch.float64) + 0.5

    def places(images: ndarray) -> Tensor:
        """Centres of mass, in sides."""
        share = torch.from_numpy(images / images.sum((1, 2), keepdims=True))
        return torch.stack([share.sum(1) @ pixels, share.sum(2) @ pixels], 1) / 64

    assert (places(after) - to(places(before))).abs().max() < 0.3 / 64
    shares = after.sum((1, 2)) / before.sum((1, 2))
    assert 0.2 < shares.min() <= shares.max() < 1
    assert sprites.WARPED[0] * 0.95 < shares.mean() < sprites.WARPED[1] * 1.05 or warp == "projective"
    if warp == "affine":  # one area for all places
        assert shares.std() < 0.05 * shares.mean()
    other = rendered(replace(warped, seed=seed + 1), s).max(1)
    assert np.abs(other - after).max() > 0.5


def test_a_warp_that_moves_nothing_changes_nothing_and_one_by_a_pixel_shifts() -> None:
    image = torch.rand(16, 16, generator=generator(), dtype=torch.float64).numpy()
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    identity = sprites.Projection(torch.diag(one), zero, zero, one)
    np.testing.assert_allclose(sprites.resampling(identity, 16) @ image.ravel(), image.ravel(), atol=1e-12)
    step = torch.tensor([1 / 16, 0], dtype=torch.float64)
    shifted = (sprites.resampling(identity._replace(low=-step, high=1 - step), 16) @ image.ravel()).reshape(16, 16)
    np.testing.assert_allclose(shifted[:, 1:], image[:, :-1], atol=1e-9)
    np.testing.assert_allclose(shifted[:, 0], 0, atol=1e-9)  # black comes in


def jacobian(settings: SpritesData, s: Tensor) -> Tensor:
    """At each of the sources, (o, d, n)."""
    return torch.cat(list(sprites.jacobian(settings, s, slice(None))), -1)


def test_the_jacobian_is_that_of_the_rendered_images() -> None:
    settings = SpritesData(n_obs=700, side=32, hue=(0.01, 0.15), seed=4)  # between red and yellow, green rises alone
    s = drawn(settings, 60)
    found = jacobian(settings, s).reshape(3, 32, 32, 4, 60)
    scenes = sprites.scenes(settings, s, generator(), np.float64)
    exact = torch.from_numpy(sprites.render(scenes, settings)).permute(1, 2, 3, 0)
    cover = exact[0] / 255
    torch.testing.assert_close(found[1, :, :, 3], 255 * 6 * 0.14 * cover, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[::2, :, :, 3], torch.zeros_like(found[::2, :, :, 3]))
    mass = found[0].sum((0, 1)) / 255  # moves keep it, and it is 4 size²
    torch.testing.assert_close(mass[:2], torch.zeros(2, 60, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(mass[2], torch.from_numpy(8 * scenes.half * 0.1 * 32), rtol=1e-6, atol=0)


def test_the_jacobian_of_mapped_factors_and_of_a_warped_image_follows_the_chain_rule() -> None:
    plain, s = SpritesData(side=32, seed=4), drawn(SpritesData(), 8) * 0.9
    mixed = replace(plain, transform="affine")
    f = sprites.draw_map(False, 4, stream(4, "mixing"))
    by_factors = jacobian(plain, f(s + 0.5) - 0.5)
    expected = torch.einsum("odn,dk->okn", by_factors, f.matrix / (f.high - f.low)[:, None])
    torch.testing.assert_close(jacobian(mixed, s), expected, rtol=1e-5, atol=1e-3)
    warped = replace(plain, warp="projective")
    w = torch.from_numpy(sprites.resampling(sprites.draw_warp(warped), 32).toarray())
    expected = torch.einsum("pq,cqdn->cpdn", w, jacobian(plain, s).reshape(3, 1024, 4, 8)).reshape(-1, 4, 8)
    torch.testing.assert_close(jacobian(warped, s), expected, rtol=1e-5, atol=1e-3)
    noisy = replace(plain, jitter=(0.0, 0.0, 0.2))  # a dimmer image, whose Jacobian is as much smaller
    ratio = jacobian(noisy, s).norm(dim=0) / jacobian(plain, s).norm(dim=0)
    torch.testing.assert_close(ratio, ratio[:1].expand(4, -1), rtol=1e-4, atol=0)
    assert float(ratio.max()) < 1


def test_only_a_map_of_the_factors_breaks_orthogonality() -> None:
    s = drawn(SpritesData(), 20) * 0.9

    def contrast(**other: Any) -> float:
        return float(ima.pointwise_contrast(jacobian(SpritesData(seed=4, **other), s)[None]).mean())

    for shape in sprites.SHAPES:
        assert 0 < contrast(shapes=(shape,)) < 0.02
    assert contrast(transform="affine") > 0.5
    assert contrast(transform="projective") > 0.5
    assert contrast(warp="affine") < 0.05  # it moves the pixels of all columns alike


def test_the_page_measures_the_contrast_of_the_renderer(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks(ROOT / "docs/images.md", "python")[0], {})  # noqa: S102  -- our own page
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in printed] == ["none", "affine"]
    assert 0 < float(printed[0][1]) < 0.02 < 1 < float(printed[1][1]) < 1.6


def test_images_are_their_seeds_own_and_leave_global_generators_alone() -> None:
    settings = SpritesData(transform="affine", jitter=(0.01, 0.05, 0.05), side=32)
    s = dataset.build_source(SpritesData().source).sample(20, 4, generator())
    with untouched_generators():
        one, again, other = (rendered(settings, s, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_rows_are_images_by_channel_row_and_column(tmp_path: Path) -> None:
    settings = SpritesData(side=16)
    scenes = sprites.scenes(settings, drawn(settings, 700), generator())
    told: list[tuple[int, int]] = []
    rows = sprites.images(scenes, settings, Cache(tmp_path / "new", lambda done, of: told.append((done, of))))
    np.testing.assert_array_equal(rows.reshape(700, 3, 16, 16), sprites.render(scenes, settings))
    assert told[-1] == (700, 700)
    assert told == sorted(told)


def test_the_cache_is_used_again_by_the_same_pixels_alone(tmp_path: Path) -> None:
    settings = SpritesData(side=16, dim=2, factors=("size", "hue"))
    s = drawn(settings, 50)
    told: list[int] = []

    def images(settings: SpritesData, s: Tensor) -> ndarray:
        scenes = sprites.scenes(settings, s, generator())
        return sprites.images(scenes, settings, Cache(tmp_path, lambda done, _: told.append(done)))

    first = images(settings, s)
    np.testing.assert_array_equal(images(settings, s), first)
    assert len(told) == 1
    changes: list[dict[str, Any]] = [
        {"side": 17},
        {"shapes": ("circle",)},
        {"size": (0.1, 0.15)},
        {"hue": (0.0, 0.5)},
        {"factors": ("hue", "size")},
        {"jitter": (0.1, 0.0, 0.0)},
        {"transform": "affine"},
        {"warp": "affine"},
        {"warp": "affine", "seed": 5},
        {"warp": "projective"},
        {"x": (0.0, 0.4)},
        {"y": (0.5, 1.0)},
        {"hsv_offset": (0.0, -0.1, 0.0)},
    ]
    others = [(SpritesData(**{**vars(settings), **change}), s) for change in changes]
    for other, sources_ in (*others, (settings, s[:40]), (settings, drawn(settings, 50, seed=1))):
        expected = rendered(other, sources_).reshape(len(sources_), -1)
        np.testing.assert_array_equal(images(other, sources_) / 255, expected)
    assert len(told) == len(list(tmp_path.iterdir())) == 16


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"factors": ("x", "y", "x")}, "factors has no factor twice"),
        ({"shapes": ()}, "shapes are as many as the factors need"),
        ({"shapes": ("square", "circle")}, "shapes are as many as the factors need"),
        ({"factors": ("x", "shape")}, "shapes are as many as the factors need"),
        ({"factors": ("x", "shape"), "shapes": ("square", "square")}, "shapes are as many as the factors need"),
        ({"factors": ("x", "angle"), "shapes": ("circle",)}, "no circle for the factor angle"),
        ({"side": 15}, "data.side"),
        ({"dim": 3}, "data.dim is the number of data.factors"),
        ({"source": {"name": "gaussian"}}, "lives on an interval for data=sprites"),
        ({"size": (0.0, 0.2)}, r"size\[0\] < size\[1\] <= 0.25"),
        ({"size": (0.2, 0.2)}, r"size\[0\] < size\[1\] <= 0.25"),
        ({"size": (0.2, 0.3)}, r"size\[0\] < size\[1\] <= 0.25"),
        ({"side": 16, "size": (0.06, 0.2)}, r"1/side <= data.size"),
        ({"hue": (0.0, 1.1)}, "hue rises by at most 1"),
        ({"hue": (0.5, 0.5)}, "hue rises by at most 1"),
        ({"angle": (0.3, 1.5)}, "angle rises by at most 1"),
        ({"x": (0.5, 0.5)}, r"0 <= data.x\[0\] < data.x\[1\] <= 1"),
        ({"x": (-0.1, 0.5)}, r"0 <= data.x\[0\]"),
        ({"y": (0.5, 1.1)}, r"data.y\[1\] <= 1"),
        ({"warp": "twisted"}, "warp"),
        ({"hsv_offset": (1.5, 0.0, 0.0)}, r"hue in \[-1, 1\]"),
        ({"hsv_offset": (0.0, 0.1, 0.0)}, r"in \(-1, 0\]"),
        ({"hsv_offset": (0.0, 0.0, -1.0)}, r"in \(-1, 0\]"),
        ({"hsv_offset": (float("nan"), 0.0, 0.0)}, r"hsv_offset"),
        ({"betas": (0.0, 2.0)}, r"0 < data.betas\[0\]"),
        ({"betas": (15.0, 2.0)}, r"data.betas\[0\] <= data.betas\[1\]"),
        ({"betas": (2.0, float("inf"))}, "betas. must be a finite number"),
        ({"betas": (2.0, 15.0), "source": {"name": "uniform"}}, "source is beta for data.betas"),
        ({"jitter": (0.0, -0.1, 0.0)}, "jitter >= 0"),
        ({"factors": ("x", "shape"), "shapes": ("square", "circle"), "transform": "affine"}, "two factors to mix"),
    ],
)
def test_settings_that_make_no_sprites_are_refused(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        build(SpritesData, {"dim": len(values.get("factors", "1234")), **values}, "data")


def test_a_source_of_shapes_settles_where_its_shape_stays() -> None:
    settings = SpritesData(dim=2, factors=("x", "shape"), shapes=("square", "triangle", "circle"), side=16)
    s = drawn(settings, 300)
    settled = sprites.settled(settings, s)
    assert torch.equal(settled[:, 0], s[:, 0])
    assert len(set(settled[:, 1].tolist())) == 3
    width = SUPPORT[1] - SUPPORT[0]
    assert float((settled[:, 1] - s[:, 1]).abs().max()) <= width / 6 + 1e-12
    np.testing.assert_array_equal(rendered(settings, settled), rendered(settings, s))
    assert torch.equal(sprites.settled(settings, settled), settled)
    ends = torch.tensor([SUPPORT, SUPPORT], dtype=torch.float64).T
    assert len(set(sprites.settled(settings, ends)[:, 1].tolist())) == 2  # both ends have a class
