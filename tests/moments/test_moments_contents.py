"""Listing and reading the moments of a run, the command that does it, and the page that describes the files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from commands import invoke

import pipeline
from pipeline.accumulate import AccumulationPlan, MomentsFolder, accumulate_moments, plan_accumulation
from pipeline.accumulate.checkpoints import partition_folder
from pipeline.base import seal
from pipeline.bins import BinGrid, CellGrid
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.errors import InputError
from pipeline.moments import Moments, SavedMoments, open_moments, render_contents, tabulate_contents, write_moments
from pipeline.moments import contents as moments_contents
from pipeline.moments.files import FORMAT
from pipeline.noise import MarginalNoise, NoiseDraw
from pipeline.schema import LABELS, MOMENTS_VERSION
from pipeline.store import SpectraStore

PAGE = Path(__file__).parents[2] / "docs" / "moments.md"
#: One bin holds nothing: no star is that hot.
GRID = BinGrid({"T_eff": [4200, 5000, 6001, 9000]}, {"T_eff": ["Cool", "Hot", "Blue"]})
NOISE = [NoiseDraw(1.0, 42, 0), MarginalNoise(1.0)]
NAMES = ["bin 0 (Cool)", "bin 1 (Hot)", "bin 2 (Blue)", "outside"]


@pytest.fixture(scope="module")
def plan(train_store: SpectraStore) -> AccumulationPlan:
    compute = ComputeConfig(folds=2, partition_rows=800, run_rows=128)
    return plan_accumulation(train_store, CellGrid((GRID,)), compute)


@pytest.fixture(scope="module")
def made(plan: AccumulationPlan, train_store: SpectraStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, as far as moments and configuration go."""
    run = tmp_path_factory.mktemp("run")
    accumulate_moments(plan, NOISE, run / "moments")
    config = ExperimentConfig.model_validate(
        {
            "data": {"train": [str(train_store.path)], "test": [str(train_store.path)]},
            "bins": {"T_eff": list(GRID.edges["T_eff"])},
            "bin_names": {"T_eff": ["Cool", "Hot", "Blue"]},
            "compute": {"folds": 2},
        }
    )
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "run")


def a_gram(run: Path) -> Path:
    return run / "moments" / NOISE[0].name / "fold-001" / "gram-000.npy"


def test_everything_is_listed(made: Path, plan: AccumulationPlan, train_store: SpectraStore) -> None:
    contents = open_moments(made)
    assert [draw.folder.name for draw in contents.draws] == sorted(noise.name for noise in NOISE)
    cells = GRID.cells(train_store.columns)
    for draw in contents.draws:
        assert (draw.key, draw.store) == (plan.settings_key, train_store.fingerprint)
        assert draw.complete
        assert [fold.rows for fold in draw.folds] == list(plan.folds)
        assert draw.counts == np.bincount(cells, minlength=4).tolist()
        assert draw.counts[2] == 0
        for fold in draw.folds:
            start, stop = plan.folds[fold.number]
            assert fold.counts == tuple(np.bincount(cells[start:stop], minlength=4).tolist())
            assert (fold.n_pixels, fold.precision, fold.labels) == (48, "float32", LABELS)
            assert fold.nbytes == sum(file.stat().st_size for file in fold.folder.iterdir())
    marginal, drawn = contents.draws
    assert dict(drawn.noise) == {"level": 1.0, "seed": 42, "stream": 0}
    assert marginal.noise["level"] == 1.0
    assert [contents.cell_name(k) for k in range(4)] == NAMES
    assert contents.verify().problems == contents.problems == []


def test_moments_are_read(made: Path) -> None:
    draw = open_moments(made).draws[1]
    reference = MomentsFolder(made / "moments" / NOISE[0].name, NOISE[0], 2, 4)
    assert draw.folds[1].read(0).identical(reference.read(1, 0))
    assert draw.total(3).identical(reference.total(3))
    assert draw.total(2).count == 0
    with pytest.raises(InputError, match="cells 0 to 3 are there, asked for 4"):
        draw.folds[0].read(4)


@pytest.mark.parametrize("place", ["", "moments", "moments/seed-42_noise-1.0"])
def test_run_moments_and_draw_folders_open(made: Path, place: str) -> None:
    contents = pipeline.open_moments(made / place)
    assert "seed-42_noise-1.0" in [draw.folder.name for draw in contents.draws]
    assert contents.draws[-1].complete
    assert contents.cell_name(3) == "outside"


def test_without_a_configuration_cells_have_numbers(run: Path) -> None:
    (run / "config.yaml").unlink()
    contents = open_moments(run)
    assert contents.cell_names is None
    assert contents.draws[0].complete
    assert "cell 3" in render_contents(contents)
    shutil.rmtree(contents.draws[0].folds[1].folder)
    assert "folds 1 of 2 are missing" in str(open_moments(run).draws[0].missing)


def test_cells_that_the_configuration_does_not_explain_have_numbers(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    for change in ({"bins": {"T_eff": [3750, 6000]}, "bin_names": {}}, {"bins": "nonsense"}):
        (run / "config.yaml").write_text(yaml.safe_dump(config | change))
        assert open_moments(run).cell_name(0) == "cell 0"


def test_cells_of_further_binnings_are_parts_of_bins(train_store: SpectraStore, made: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((made / "config.yaml").read_text())
    config["binnings"] = {"by SNR": {"snr": [0.0, 8.0, 100.0]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    cells = CellGrid((GRID, BinGrid({"snr": [0.0, 8.0, 100.0]})))
    plan = plan_accumulation(train_store, cells, ComputeConfig(folds=2, partition_rows=800, run_rows=128))
    accumulate_moments(plan, NOISE[:1], tmp_path / "moments")
    contents = open_moments(tmp_path)
    numbers = cells.cells(train_store.columns)
    hot = (train_store.columns["T_eff"] >= 5000) & (train_store.columns["T_eff"] < 6001)
    parts = [k for k in range(cells.n_cells) if contents.cell_name(k).startswith("bin 1 (Hot), part")]
    assert set(np.unique(numbers[hot])) <= set(parts)
    assert sum(contents.draws[0].counts[k] for k in parts) == hot.sum()
    assert contents.cell_name(parts[0]) == f"bin 1 (Hot), part 1 of {len(parts)}"
    config["binnings"] = {"by SNR": {"snr": {"quantiles": 2}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_moments(tmp_path).cell_names is None


def test_unfinished_draws_say_what_is_missing(run: Path, plan: AccumulationPlan) -> None:
    folder = run / "moments" / NOISE[0].name
    (folder / "fold-001").rename(partition_folder(folder, 1))
    draw = open_moments(run).draws[1]
    assert not draw.complete
    assert "1 partitions wait" in str(draw.missing)
    assert sum(draw.counts) == plan.n_spectra
    assert "unfinished, 1 partitions wait" in render_contents(open_moments(run))
    shutil.rmtree(partition_folder(folder, 1))
    assert "folds 1 of 2 are missing" in str(open_moments(run).draws[1].missing)
    shutil.rmtree(folder / "fold-000")
    assert open_moments(run).draws[1].missing == "no fold is finished"
    # A fold that is being written has another name.
    shutil.copytree(run / "moments" / NOISE[1].name / "fold-000", folder / ".fold-000.abc.tmp")
    assert open_moments(run).draws[1].folds == ()
    assert not open_moments(run).problems


def test_partitions_that_a_run_deletes_meanwhile_are_no_damage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete_and_open(folder: Path) -> SavedMoments:
        if folder.name == "fold-000":
            shutil.rmtree(folder)
        return SavedMoments.open(folder)

    monkeypatch.setattr(moments_contents, "SavedMoments", SimpleNamespace(open=delete_and_open))
    contents = open_moments(run)
    assert contents.problems == []
    assert [[fold.number for fold in draw.folds] for draw in contents.draws] == [[1], [1]]


def test_folds_of_other_rows_are_damage(run: Path) -> None:
    facts_file = run / "moments" / NOISE[0].name / "fold-001" / "moments.json"
    facts = json.loads(facts_file.read_text())
    facts["rows"] = [row + 5 for row in facts["rows"]]
    facts_file.write_text(json.dumps(seal(facts)))
    assert "fold-001: of another computation" in str(open_moments(run).draws[1].folds[1].problem)


def test_changed_counts_are_damage(run: Path) -> None:
    facts_file = run / "moments" / NOISE[0].name / "fold-001" / "moments.json"
    facts = json.loads(facts_file.read_text())
    facts["counts"][0] += 2
    facts["counts"][1] -= 2  # the sum is that of the rows
    facts_file.write_text(json.dumps(facts))
    assert "checksum" in str(open_moments(run).draws[1].folds[1].problem)


@pytest.mark.parametrize("what", ["sums.npz", "gram-000.npy", "moments.json", "."])
@pytest.mark.parametrize("other", ["fold-000", f"../{NOISE[1].name}/fold-001"])
def test_files_of_another_fold_or_noise_are_damage(run: Path, plan: AccumulationPlan, what: str, other: str) -> None:
    folder = run / "moments" / NOISE[0].name
    one, two, aside = folder / "fold-001" / what, folder / other / what, run / "aside"
    two.rename(aside), one.rename(two), aside.rename(one)
    assert open_moments(run).verify().problems
    moments = MomentsFolder(folder, NOISE[0], 2, 4, plan.fold_keys)
    with pytest.raises(InputError, match="fold-00"):
        [moments.read(fold, 0) for fold in range(2)]


def test_folders_that_were_exchanged_are_computed_again(run: Path, made: Path, plan: AccumulationPlan) -> None:
    one, two = (run / "moments" / noise.name / "fold-001" for noise in NOISE)
    aside = one.rename(run / "aside")
    two.rename(one), aside.rename(two)
    accumulate_moments(plan, NOISE, run / "moments")
    for noise in NOISE:
        name = f"moments/{noise.name}/fold-001/sums.npz"
        assert (run / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize("damage", ["[]", "null", "{}", "[" * 100_000])
@pytest.mark.parametrize("name", ["key.json", "fold-000/moments.json"])
def test_json_of_another_kind_is_damage(run: Path, name: str, damage: str) -> None:
    (run / "moments" / NOISE[0].name / name).write_text(damage)
    assert len(open_moments(run).problems) == 1


def flip_a_byte(run: Path) -> None:
    content = bytearray(a_gram(run).read_bytes())
    content[-40] ^= 1
    a_gram(run).write_bytes(content)


def test_a_flipped_byte_shows_when_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(run)
    contents = open_moments(run)
    assert contents.problems == []
    verified = contents.verify()
    assert len(verified.problems) == 1
    assert "gram-000.npy: it does not match its checksum" in verified.problems[0]
    assert [draw.complete for draw in verified.draws] == [True, False]
    assert "damaged" in render_contents(verified)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gram-000.npy", None, "gram-000.npy is missing"),
        ("sums.npz", b"PK", "sums.npz"),
        ("moments.json", b"{", "damaged"),
        ("moments.json", b'{"format": "headroom-moments", "version": 1}', "version 1"),
        ("../key.json", b"[]", "key.json: missing, or not"),
        ("../key.json", None, "key.json: missing, or not"),
    ],
)
def test_damage_is_listed_beside_what_is_sound(run: Path, name: str, content: bytes | None, words: str) -> None:
    file = a_gram(run).parent / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    contents = open_moments(run)
    assert len(contents.problems) == 1
    assert words in contents.problems[0]
    marginal, drawn = contents.draws
    assert marginal.complete
    assert drawn.complete is False
    assert drawn.folds[0].problem is None
    assert words in render_contents(contents)
    assert json.dumps(tabulate_contents(contents))
    assert contents.verify().problems == contents.problems


@pytest.mark.parametrize("keep", [40, -1])
def test_a_matrix_that_ends_early_is_damage(run: Path, keep: int) -> None:
    a_gram(run).write_bytes(a_gram(run).read_bytes()[:keep])
    contents = open_moments(run)
    assert len(contents.problems) == 1
    assert "damaged (gram-000.npy: " in contents.problems[0]
    assert [draw.complete for draw in contents.draws] == [True, False]


@pytest.mark.parametrize("change", [{"key": "another"}, {"rows": [800, 1601]}, {"rows": None}, {"gram_dtype": None}])
def test_wrong_facts_are_damage(run: Path, change: dict[str, object]) -> None:
    facts_file = a_gram(run).parent / "moments.json"
    facts_file.write_text(json.dumps(json.loads(facts_file.read_text()) | change))
    assert len(open_moments(run).problems) == 1


def test_open__raise_on_folders_without_moments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_moments(tmp_path / "nothing")
    with pytest.raises(InputError, match="no moments found"):
        open_moments(tmp_path)


# --- the command ---


def test_the_command_lists_in_words(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = invoke(capsys, "moments", str(made), "--verify")
    assert code == 0
    assert "seed-42_noise-1.0: complete" in out
    assert "1,600 spectra × 48 pixels, 4 cells, float32" in out
    assert "fold 1: rows 800 to 1,599, 800 spectra" in out
    assert re.search(r"bin 0 \(Cool\)\s+[\d,]+\s+\d+\.\d %", out)
    assert out.count("outside") == 1
    assert "spectra per cell: as above" in out
    assert "verify: 12 Gram matrices" in err


def test_the_command_lists_as_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = invoke(capsys, "moments", str(made), "--json")
    assert (code, err) == (0, "")
    listing = json.loads(out)
    assert (listing["format"], listing["version"]) == ("headroom-moments-listing", 1)
    drawn = listing["draws"][1]
    assert drawn["noise"] == {"level": 1.0, "seed": 42, "stream": 0}
    assert (drawn["n_pixels"], drawn["precision"], drawn["complete"]) == (48, "float32", True)
    assert [cell["name"] for cell in drawn["cells"]] == NAMES
    assert sum(cell["count"] for cell in drawn["cells"]) == 1600
    assert [fold["rows"] for fold in drawn["folds"]] == [[0, 800], [800, 1600]]
    assert drawn["bytes"] == sum(fold["bytes"] for fold in drawn["folds"]) > 0


def test_the_command_exits_with_2_on_damage_and_mistakes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(run)
    assert invoke(capsys, "moments", str(run), "--quiet")[0] == 0
    code, out, err = invoke(capsys, "moments", str(run), "--verify", "--quiet")
    assert code == 2
    assert "seed-42_noise-1.0: DAMAGED" in out
    assert err == ""
    code, out, err = invoke(capsys, "moments", str(run / "nothing"))
    assert (code, out) == (2, "")
    assert err.startswith("headroom: moments ")
    assert err.count("\n") == 1


# --- the page ---


def run_the_page(folder: Path, cell: int) -> dict[str, np.ndarray]:
    # The other blocks of the page run in the tests of the documentation.
    *_, block = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(block.splitlines()) <= 10
    names = {"folder": folder, "cell": cell, "json": json, "np": np}
    exec(block, names)
    return names


@pytest.mark.parametrize("n_pixels", [5, 16, 17, 48, 100, 2100, 4100])
def test_the_page_reads_matrices_of_any_size(n_pixels: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(3, 1, (6, n_pixels))
    moments = Moments.from_samples(x, x[:, :2], x_origin=np.full(n_pixels, 2.5))
    write_moments(tmp_path / "m", [moments], 1, {"rows": [0, 6]})
    found = run_the_page(tmp_path / "m", 0)
    assert found["S"].shape == (n_pixels, n_pixels)
    about_origin, about_mean = x - 2.5, x - x.mean(axis=0)
    for name, expected in (("S", about_origin.T @ about_origin), ("covariance", about_mean.T @ about_mean / 6)):
        found[name] -= expected  # in place: the largest of these matrices have 17 million entries
        assert max(found[name].max(), -found[name].min()) < 1e-12
    np.testing.assert_allclose(found["mean"], x.mean(axis=0), rtol=1e-12)


def test_the_page_reads_what_a_run_left(made: Path) -> None:
    for draw in open_moments(made).draws:
        found, expected = run_the_page(draw.folds[1].folder, 1), draw.folds[1].read(1)
        np.testing.assert_array_equal(found["S"], expected.layout.unpack(expected.gram))
        np.testing.assert_array_equal(found["mean"], expected.x_mean)


def test_the_page_names_what_the_files_hold(made: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"Format `{FORMAT}`, version {MOMENTS_VERSION}," in page
    fold = a_gram(made).parent
    facts = json.loads((fold / "moments.json").read_text())
    with np.load(fold / "sums.npz") as sums:
        shapes = {name: sums[name].shape for name in sums.files}
    for name in [*facts, *shapes, *json.loads((fold.parent / "key.json").read_text())]:
        assert f"`{name}`" in page, f"the page does not name {name}"
    sizes = {"K": 4, "P": 48, "Q": 3}
    for name, shape in shapes.items():
        stated = re.search(rf"`{name}` [^(`]*\(([KPQ, ]+)\)", page)
        assert stated, f"the page does not state the shape of {name}"
        assert shape == tuple(sizes[letter] for letter in re.findall(r"[KPQ]", stated.group(1)))
    assert facts["gram_crc32c"][2] is None
    assert not (fold / "gram-002.npy").exists()
