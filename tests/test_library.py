"""The package as a library: it does what the commands do, and reads their results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import imavae
from imavae import metrics
from imavae.cli import commands
from imavae.config.settings import RunConfig, StudyConfig, overridden, run_config
from imavae.errors import Interrupted, UserError
from imavae.runs.folder import create
from imavae.runs.ledger import Ledger, run_point
from imavae.runs.models import member_parts
from imavae.runs.results import Results
from imavae.runs.session import Session
from imavae.search import study
from imavae.tracking import Tracker
from tests.helpers import file_data, observations, sprites

TINY: dict[str, Any] = {
    "data": {"n_obs": 2000},
    "members": {"seed": [1, 2, 3]},
    "training": {"max_epochs": 4, "validate_every": 2},
}


def test_importing_it_imports_nothing_that_is_slow() -> None:
    code = "import sys, imavae, imavae.metrics; print({'torch', 'ray', 'mlflow', 'pandas', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_all_of_its_names_are_there() -> None:
    for name in imavae.__all__:
        assert getattr(imavae, name) is not None
    assert dir(imavae) == imavae.__all__
    assert imavae.metrics is metrics
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        imavae.trian  # noqa: B018


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return imavae.train(TINY, output_dir=str(tmp_path_factory.mktemp("out")), tracking={"name": "none"})


def test_the_command_leaves_what_the_library_leaves(run: Results, tmp_path: Path) -> None:
    commands.train(run_config({**TINY, "output_dir": str(tmp_path), "tracking": {"name": "none"}}))
    theirs = tmp_path / "runs/train"
    for name in ("members.csv", "history.csv"):
        assert (run.folder / name).read_bytes() == (theirs / name).read_bytes()
    mine, others = ({path.relative_to(f).as_posix() for path in f.rglob("*")} for f in (run.folder, theirs))
    assert mine == others
    assert {"report.html", "figures"} <= mine


def test_a_runs_tables_are_those_of_its_folder(run: Results) -> None:
    members = pd.read_csv(run.folder / "members.csv", engine="pyarrow")
    pd.testing.assert_frame_equal(run.members, members)
    assert run.history["epoch"].unique().tolist() == [2, 4]
    assert run.trials.to_dict("records") == [
        {"trial": 0, "score": run.members["max val/mcc"].median(), "status": "finished", "epochs": 4}
    ]
    again = imavae.load_results(run.folder)
    assert again == run
    assert again.config == run_config({**TINY, "output_dir": run.config.output_dir, "tracking": {"name": "none"}})


def test_the_table_of_latents_is_that_of_the_best_member(run: Results) -> None:
    best = max(run.members.to_dict("records"), key=lambda row: row["max val/mcc"])
    assert run.latents["latent"].tolist() == [1, 2, 3]
    assert run.latents["correlation"].abs().mean() == pytest.approx(best["val/mcc_mean at max val/mcc"], abs=1e-6)
    assert run.latents["kl"].sum() == pytest.approx(best["val/kl at max val/mcc"], rel=1e-5)


@pytest.mark.parametrize("by", ["val/mcc", "val/neg_elbo"])
def test_each_member_is_a_model_with_the_numbers_of_its_row(run: Results, by: str) -> None:
    column = {"val/mcc": "max val/mcc", "val/neg_elbo": "min val/neg_elbo"}[by]
    for row in run.members.to_dict("records"):
        model = run.model(seed=row["seed"], by=by)
        assert model.about["seed"] == row["seed"]
        for split in ("val", "test"):
            world = imavae.world(model, split)
            found = imavae.encode(model, world.observations)
            assert world.sources is not None
            assert metrics.mcc(world.sources, found.z) == pytest.approx(row[f"{split}/mcc_mean at {column}"], abs=1e-6)
            jacobian = model.jacobian(torch.from_numpy(found.z))
            assert metrics.cima(jacobian) == pytest.approx(row[f"{split}/cima at {column}"], abs=1e-4)
            assert metrics.amari(jacobian, world.jacobian) == pytest.approx(row[f"{split}/amari at {column}"], abs=1e-4)
            assert metrics.cima(world.jacobian) == pytest.approx(row[f"{split}/cima_truth at {column}"], abs=1e-6)
            assert world.log_px.mean() == pytest.approx(row[f"{split}/log_px at {column}"])


def test_the_champion_is_the_best_member(run: Results) -> None:
    members = run.members
    best = max(members.to_dict("records"), key=lambda row: float(row["max val/mcc"]))["seed"]
    x = imavae.world(run.config).observations
    expected = imavae.encode(run.champion, x).z
    assert run.champion.about["seed"] == best
    for same in (run.model(), run.model(0, best), imavae.load_model(run.folder)):
        assert np.array_equal(imavae.encode(same, x).z, expected)
    assert np.array_equal(imavae.encode(run.folder, x).z, expected)


def test_the_champion_of_several_is_the_best_and_each_report_has_its_own(tmp_path: Path) -> None:
    """The last of three runs is the worst; the fourth has easier data. A resumed one keeps its model."""
    data, easier = ({"n_obs": 1000, "dim": dim, "mixing": {"name": name}} for dim, name in ((3, "mlp"), (2, "linear")))
    settings = {**TINY, "model": {"gamma": 20.0}, "output_dir": str(tmp_path), "tracking": {"name": "mlflow"}}
    runs = [
        imavae.train(settings, data=mixed, training={"max_epochs": epochs})
        for epochs, mixed in ((8, data), (20, data), (2, data), (20, easier))
    ]
    first, best, last, easy = (result.ranked()[0].score or 0.0 for result in runs)
    assert last < first < best < easy
    addresses = [result.champion_address for result in runs]
    assert addresses == [f"models:/train/{version}" for version in range(1, 5)]

    def weights(address: str) -> torch.Tensor:
        return torch.cat([weight.flatten() for weight in imavae.load_model(address, str(tmp_path)).weights.values()])

    for result in runs:
        assert result.champion_address in result.names.report.read_text()
        assert torch.equal(weights(result.champion_address), weights(str(result.folder)))
    assert torch.equal(weights("models:/train@champion"), weights(addresses[1]))
    again = imavae.train(runs[2].config, resume=True, name=runs[2].folder.name)
    assert (again.champion_address, again.config.name) == (addresses[2], None)


def test_latents_are_those_of_the_plain_module(run: Results) -> None:
    model, x = run.champion, imavae.world(run.champion, "train").observations
    found = imavae.encode(model, torch.from_numpy(x))
    with torch.no_grad():
        z = model.encode(torch.from_numpy(x))
        error = (model.decode(z) - torch.from_numpy(x)).square().mean(1)
    np.testing.assert_allclose(found.z, z, atol=1e-6)
    np.testing.assert_allclose(found.error, error, atol=1e-6)
    assert found.z.shape == found.std.shape == x.shape == (1400, 3)
    assert (found.std > 0).all()


def test_a_world_can_be_written_into_without_harm(run: Results) -> None:
    first = imavae.world(run.config)
    before = first.observations.copy()
    first.observations[:] = 0
    assert np.array_equal(imavae.world(run.config).observations, before)
    assert imavae.world(run.config, "train").jacobian.shape == (0, 3, 3)
    assert imavae.world(run.config, "train").segments.tolist() == [0] * 1400


def test_nothing_is_printed_and_torchs_threads_stay(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    try:
        imavae.train(TINY, output_dir=str(tmp_path), training={"max_epochs": 2}, tracking={"name": "none"})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_run_can_be_read_and_goes_on_to_the_same_numbers(
    run: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Session.save

    def save_and_stop(session: Session, path: Path, keep: bool = False) -> None:
        save(session, path, keep)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        imavae.train(**TINY, output_dir=str(tmp_path))
    monkeypatch.undo()
    broken = imavae.load_results(tmp_path / "runs/train")
    assert len(broken.members) == len(broken.trials) == len(broken.history) == 0
    with pytest.raises(UserError, match="`a trial has a result` must hold, but got none in"):
        broken.model()
    done = imavae.train(**TINY, output_dir=str(tmp_path), resume=True)
    assert done.folder == broken.folder
    assert done.members.equals(run.members)
    assert done.config == broken.config, "asked for anew, it does not mean to resume"
    assert not (tmp_path / "mlflow.db").exists(), "without a configuration nothing is tracked"


def test_an_interrupted_study_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: StudyConfig, *_: object) -> Ledger:
        ledger = Ledger.start(config, create(config, "studies", "broken"), Tracker())
        ledger.write_tables()
        ledger.interrupted = Interrupted(2)
        return ledger

    monkeypatch.setattr(study, "run_study", interrupted)
    search = {"model": {"gamma": {"type": "choice", "values": [1.0, 2.0]}}}
    with pytest.raises(KeyboardInterrupt):
        imavae.tune(search=search, sampler={"name": "grid"}, output_dir=str(tmp_path), tracking={"name": "none"})
    results = imavae.load_results(tmp_path / "studies/broken")
    assert results.interrupted
    assert results.names.report.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.model(trial=7), "`trial is one that has a result` must hold, but got trial=7; choose"),
        (lambda run: run.model(seed=7), r"`seed is a member's of trial 0` must hold, but got seed=7; choose one"),
        (lambda run: run.model(by="val/mc"), "`by` must be one of val/mcc, val/neg_elbo, but got 'val/mc'; did you"),
        (lambda run: imavae.world(run.config, "tset"), "`split` must be one of train, val, test, but got 'tset'"),
        (lambda run: imavae.load_results(run.folder / "no"), "`folder is that of a run or study` must hold, but got"),
        (lambda run: imavae.load_results(run.folder / "records"), "the backup study.previous.json is no better"),
        (lambda run: imavae.encode(run.folder, np.zeros(3)), r"`observations have the shape \(n, 3\)` must hold, but"),
        (lambda run: imavae.encode(run.folder, np.zeros((3, 4))), r"`observations have the shape \(n, 3\)` must hold,"),
        (lambda run: imavae.encode(run.folder, np.full((3, 3), np.nan)), "`x has finite numbers` must hold, but got"),
        (lambda run: imavae.train(run.config, model={"gama": 1.0}), "`model.gama` is not a setting"),
        (lambda run: imavae.train(run.config, modle={}), "`modle` is not a setting"),
        (lambda run: imavae.tune(run.config), "`search has a parameter` must hold, but got {}"),
        (
            lambda run: imavae.tune(run.config, search={"model": {"gamma": {"type": "float", "low": 1.0, "high": 2.0}}},
                                    dry_run=True),
            "`dry_run is for the command` must hold, but got True",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_refused(run: Results, call: Any, message: str) -> None:
    with pytest.raises(UserError, match="^" + message):
        call(run)


def test_a_damaged_record_is_named_and_left_alone(run: Results, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    record = folder / "records/trial-000.json"
    record.write_bytes(record.read_bytes()[:-5])
    with pytest.raises(UserError, match="trial-000"):
        imavae.load_results(folder)
    assert record.exists()


def test_settings_go_over_those_of_a_configuration() -> None:
    base = {"model": {"gamma": 3.0, "prior": {"name": "beta", "alpha": 3.0}}, "search": {"model": {"gamma": 1}}}
    over = overridden(base, {"model": {"prior": {"name": "gaussian"}}, "search": {"model": {"slope": 2}}})
    assert over == {"model": {"gamma": 3.0, "prior": {"name": "gaussian"}}, "search": {"model": {"slope": 2}}}
    assert overridden(base, {"model": {"prior": {"alpha": 4.0}}})["model"]["prior"] == {"name": "beta", "alpha": 4.0}
    assert base["model"] == {"gamma": 3.0, "prior": {"name": "beta", "alpha": 3.0}}


def test_a_configuration_may_be_built_of_its_classes(
    run: Results, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from imavae.config.settings import Model
    from imavae.model.priors import GaussianPrior

    model = Model(gamma=7.0, prior=GaussianPrior())
    other = imavae.train(run.config, model=model, output_dir=str(tmp_path), progress=True)
    assert "epoch 4/4" in capfd.readouterr().out
    assert isinstance(other.config, RunConfig)
    assert other.config.model == model
    assert other.config.data == run.config.data


def test_own_rows_go_in_raw_and_by_name(tmp_path: Path) -> None:
    path = observations(tmp_path / "rows.parquet")
    own = imavae.train(data=file_data(path, dim=2), members={"seed": [1, 2]}, training={"max_epochs": 2},
                       output_dir=str(tmp_path))  # fmt: skip
    frame = pd.read_parquet(path)
    found = imavae.encode(own.folder, frame)
    assert np.array_equal(imavae.encode(own.champion, frame[list("dcba")]).z, found.z)
    assert np.array_equal(imavae.encode(own.champion, frame.to_numpy()).z, found.z)
    with pytest.raises(UserError, match="`the frame has the model's columns` must hold, but got no a"):
        imavae.encode(own.folder, frame.drop(columns="a"))
    world = imavae.world(own.champion, "train")
    assert (world.sources.shape, world.jacobian.shape, world.log_px.shape) == ((700, 0), (0, 4, 2), (0,))
    rows = {tuple(row) for row in frame.to_numpy().round(2)}
    assert {tuple(row) for row in world.observations.astype(float).round(2)} <= rows
    z = own.champion.encode(torch.tensor(frame.to_numpy()[:3]))
    jacobian = own.champion.jacobian(z).detach()
    step = torch.zeros_like(z)
    step[:, 1] = 1e-2
    slope = (own.champion.decode(z + step) - own.champion.decode(z - step)).detach() / 2e-2
    torch.testing.assert_close(jacobian[:, :, 1], slope, rtol=2e-2, atol=2e-2)


def test_images_are_numbers_between_0_and_1(tmp_path: Path) -> None:
    ledger, session = run_point(sprites(tmp_path, tracking={"name": "none"}), lambda *_: None)
    model = imavae.Model(*member_parts(session, 0, "val/mcc", {}))
    world = imavae.world(model)
    assert world.observations.shape == (64, 768)
    assert imavae.encode(model, world.observations).z.shape == (64, 4)
    with pytest.raises(UserError, match="`images are numbers in \\[0, 1\\]` must hold, but got others in x; divide"):
        imavae.encode(ledger.folder, world.observations * 255)
