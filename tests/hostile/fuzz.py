"""Damage files at random, by a seed, and let the commands meet them: ``python tests/hostile/fuzz.py --help``.

A damaged file either changes nothing, byte for byte, or is refused by an error that the user understands (exit code 2
or 3). Each mutation runs in a process of its own, forked from one that has imported everything, and with a deadline.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # a process with threads should not fork

import h5py
import pandas as pd
import yaml

from pipeline import load_config, run_experiment
from pipeline.convert import convert_shards
from pipeline.errors import HeadroomError
from pipeline.moments import open_moments
from pipeline.predict import export_model, load_model, predict_spectra
from pipeline.report import compare_runs
from pipeline.run import revisit_run
from pipeline.scoring import read_results
from pipeline.simulate import SampleSpec, write_sample

OUTCOMES: Final = ("identical", "named", "traceback", "wrong", "hang")
TABLES: Final = ("results.csv", "per_bin_results.csv", "summary.json")
CONFIG: Final = {
    "bins": {"T_eff": [3750, 4875, 6000]},
    "noise": {"levels": [0.5, 1.0], "test": "drawn"},
    "ridge": {"alpha": {"per_spectrum": 0.1}, "min_spectra": 5},
    "seeds": [42],
    "gate": {},
    "compute": {"folds": 2, "partition_rows": 150},
    "bootstrap": {"resamples": 100},
}

# --- What is damaged. A scene is a folder with everything; every mutation works on a copy of its own.


def make_scene(scene: Path) -> None:
    """Simulate spectra, convert them, run the experiment on them, export its model and use it."""
    write_sample(scene / "spectra", SampleSpec(train=300, test=60, shards=2, pixels=16), workers=1)
    for shard in scene.glob("spectra/**/dataset.h5"):
        _add_checksums(shard)
    train, test = scene / "spectra" / "train", scene / "spectra" / "test"
    for number in range(2):
        convert_shards(
            [train / f"shard_{number}" / "dataset.h5"], scene / f"train_{number}.zarr", workers=1, chunk_rows=64
        )
    convert_shards([test / "dataset.h5"], scene / "test.zarr", workers=1, chunk_rows=16, shard_rows=0)
    stores = {"train": ["train_0.zarr", "train_1.zarr"], "test": ["test.zarr"]}
    (scene / "stores.yaml").write_text(yaml.safe_dump({"data": stores, **CONFIG}))
    shards = {"train": ["spectra/train"], "test": ["spectra/test"], "stores": "stores"}
    (scene / "shards.yaml").write_text(yaml.safe_dump({"data": shards, **CONFIG}))
    run_experiment(load_config(scene / "stores.yaml"), scene / "run")
    run_experiment(load_config(scene / "shards.yaml"), scene / "run_of_shards", convert_workers=1)
    export_model(scene / "run", scene / "model")


def _add_checksums(shard: Path) -> None:
    """Write a shard anew in the latest format of HDF5, with a checksum for every chunk and for all that describes them.

    In other files a flipped bit is another spectrum, and nobody can tell.
    """
    new = shard.with_suffix(".new")
    with h5py.File(shard, "r") as source, h5py.File(new, "w", libver="latest") as target:
        for key, value in source.attrs.items():
            target.attrs[key] = value

        def copy(name: str, one: h5py.Dataset | h5py.Group) -> None:
            if isinstance(one, h5py.Dataset):
                made = target.create_dataset(
                    name, data=one[()], chunks=True if one.shape else None, fletcher32=bool(one.shape)
                )
            else:
                made = target.require_group(name)
            for key, value in one.attrs.items():
                made.attrs[key] = value

        source.visititems(copy)
    new.replace(shard)


def _tables(folder: Path) -> bytes:
    return b"".join((folder / name).read_bytes() for name in TABLES)


def answer_run(scene: Path) -> bytes:
    """Run the experiment from the stores into a new folder."""
    run_experiment(load_config(scene / "stores.yaml"), scene / "new")
    return _tables(scene / "new")


def answer_again(scene: Path) -> bytes:
    """Run the experiment again in its folder, which takes what still holds; its stores are where they were."""
    run_experiment(load_config(Path(os.environ["HEADROOM_FUZZ_SCENE"]) / "stores.yaml"), scene / "run")
    return _tables(scene / "run")


def answer_solved_again(scene: Path) -> bytes:
    """Score anew in a folder that has moments and models."""
    (scene / "run" / "metadata.json").unlink(missing_ok=True)
    return answer_again(scene)


def answer_reading(scene: Path) -> bytes:
    """Read, compare and revisit the finished run."""
    results = read_results(scene / "run")
    compared = compare_runs(["run", "run"]).to_dict()
    tables = [frame.to_csv() for frame in (results.overall, results.per_bin, results.labels, results.predictions)]
    scored = revisit_run(scene / "run").models.global_weights
    return json.dumps([results.summary.to_dict(), compared["differences"], tables, scored.tolist()]).encode()


def answer_moments(scene: Path) -> bytes:
    """List and verify the moments, and export a model from them."""
    contents = open_moments(scene / "run").verify()
    if contents.problems:
        raise HeadroomError("; ".join(contents.problems))
    model = export_model(scene / "run", scene / "other")
    return model.weights.tobytes() + model.components.vectors.tobytes()


def answer_predict(scene: Path) -> bytes:
    """Predict the labels of the test store with the bundle."""
    return _predict(scene, "test.zarr")


def answer_predict_shard(scene: Path) -> bytes:
    """Predict the labels of the test shard with the bundle."""
    return _predict(scene, "spectra/test")


def _predict(scene: Path, spectra: str) -> bytes:
    out = scene / "predicted.parquet"
    predict_spectra(load_model(scene / "model"), [scene / spectra], out)
    return pd.read_parquet(out).to_csv().encode()


def answer_shards(scene: Path) -> bytes:
    """Run the experiment from shards that have stores already: what changed since is compared with these."""
    run_experiment(load_config(scene / "shards.yaml"), scene / "run_of_shards", convert_workers=1)
    return _tables(scene / "run_of_shards")


ANSWERS: Final[Mapping[str, Callable[[Path], bytes]]] = {
    function.__name__.removeprefix("answer_"): function
    for function in (
        answer_run, answer_again, answer_solved_again, answer_reading, answer_moments, answer_predict,
        answer_predict_shard, answer_shards,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What of the scene is needed, files that are damaged as patterns, what then meets them, and how often of 100."""

    name: str
    needs: tuple[str, ...]
    patterns: tuple[str, ...]
    answers: tuple[str, ...]
    share: int


_STORES: Final = ("train_0.zarr", "train_1.zarr", "test.zarr")
_STORE_FILES: Final = ("zarr.json", "*/zarr.json", "*/c/*", "*/c/*/0")
_SHARDS: Final = ("spectra", "stores", "shards.yaml", "run_of_shards")
TARGETS: Final = (
    Target(
        "stores",
        (*_STORES, "stores.yaml"),
        tuple(f"{store}/{file}" for store in _STORES for file in _STORE_FILES),
        ("run",),
        30,
    ),
    Target(
        "predicted store", ("test.zarr", "model"), tuple(f"test.zarr/{one}" for one in _STORE_FILES), ("predict",), 10
    ),
    Target(
        "moments", ("run",), ("run/moments/*/*/*", "run/moments/*/*.json"), ("again", "solved_again", "moments"), 16
    ),
    Target(
        "run folder",
        ("run",),
        ("run/*.json", "run/*.csv", "run/*.parquet", "run/*.yaml", "run/models/*", "run/gates/*"),
        ("again", "solved_again", "reading", "moments"),
        18,
    ),
    Target("bundle", ("model", "test.zarr"), ("model/*", "model/arrays/*"), ("predict",), 12),
    Target("train shards", _SHARDS, ("spectra/train/*/dataset.h5",), ("shards",), 9),
    Target("test shard", (*_SHARDS, "model"), ("spectra/test/dataset.h5",), ("shards", "predict_shard"), 5),
)
#: Files of a run folder that no result depends on.
_UNREAD: Final = ("status.json", "submission.json")

# --- How it is damaged.

_DEEP: Final = 100_000
_KINDS: Final = ("[]", "null", "3", '"x"', "{}", "true", "[" * _DEEP, '{"a":' * _DEEP, "[1,2", "", "\ufeff{}", "NaN")


def damage(path: Path, others: list[Path], draw: random.Random) -> str:
    """Change one file, and say how."""
    content = path.read_bytes()
    ways = ["flip", "flip", "bytes", "cut", "zeros", "longer", "empty", "gone", "folder", "exchanged", "copied"]
    if path.suffix == ".json":
        ways += ["kind", "kind", "leaf", "leaf", "key"]
    if path.suffix == ".h5":
        ways = ["flip", "flip", "flip", "bytes", "bytes", "cut", "zeros", "empty", "copied", "shorter", "unwritten"]
    way = draw.choice(ways)
    place = draw.randrange(max(1, len(content)))
    same = [other for other in others if other != path and other.suffix == path.suffix and other.is_file()]
    # Files of one size pass for each other longest.
    alike = [other for other in same if other.stat().st_size == len(content)] or same
    if way == "flip" and content:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    elif way == "bytes":
        path.write_bytes(content[:place] + draw.randbytes(16) + content[place + 16 :])
    elif way == "cut":
        path.write_bytes(content[:place])
    elif way == "zeros":
        path.write_bytes(content[:place] + bytes(min(512, len(content) - place)) + content[place + 512 :])
    elif way == "longer":
        path.write_bytes(content + draw.randbytes(8))
    elif way == "gone":
        path.unlink()
    elif way == "folder":
        path.unlink()
        path.mkdir()
    elif way in ("exchanged", "copied") and alike:
        other = draw.choice(alike)
        path.write_bytes(other.read_bytes())
        if way == "exchanged":
            other.write_bytes(content)
        return f"{way} with {other.name if other.parent == path.parent else other}"
    elif way == "kind":
        kind = draw.choice(_KINDS)
        path.write_text(kind, encoding="utf-8")
        return f"kind {kind[:12]}"
    elif way in ("leaf", "key"):
        return f"{way} {_change_leaf(path, draw, is_key=way == 'key')}"
    elif way in ("shorter", "unwritten"):
        return f"{way} {_change_dataset(path, draw, is_written=way == 'shorter')}"
    else:
        path.write_bytes(b"")
        return "empty"
    return f"{way} at {place}"


def _change_leaf(path: Path, draw: random.Random, *, is_key: bool) -> str:
    """Change one value of a JSON file, or leave a key out."""
    top = json.loads(path.read_text(encoding="utf-8"))
    value, name = top, ""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        name += f".{key}"
        if not isinstance(value[key], dict | list) or not value[key] or draw.random() < 0.2:
            break
        value = value[key]
    if is_key:
        del value[key]
    else:
        old = value[key]
        number = [old + 1, old * 2, -old] if isinstance(old, int | float) and not isinstance(old, bool) else []
        value[key] = draw.choice([None, [], {}, "x", 3, 1e308, [[]], *number])
    path.write_text(json.dumps(top), encoding="utf-8")
    return name


def _change_dataset(path: Path, draw: random.Random, *, is_written: bool) -> str:
    """Let an array of a shard be shorter, or its storage be unwritten."""
    names: list[str] = []
    with h5py.File(path, "a") as file:
        file.visititems(lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) else None)
        name = draw.choice([one for one in names if file[one].shape])
        values, attributes, chunks = file[name][()], dict(file[name].attrs), file[name].chunks
        del file[name]
        if is_written:
            new = file.create_dataset(name, data=values[: draw.randrange(len(values))])
        else:
            new = file.create_dataset(name, values.shape, values.dtype, chunks=draw.choice([None, chunks]))
        for key, value in attributes.items():
            new.attrs[key] = value
    return name


# --- One mutation, in a process of its own.


@dataclass
class Case:
    """A mutation under way."""

    number: int
    folder: Path
    target: Target
    pid: int = 0
    deadline: float = 0.0

    def start(self, scene: Path, seed: int, expected: Mapping[str, bytes], seconds: float) -> None:
        """Fork a process that makes the mutation and lets a command meet it."""
        self.deadline = time.monotonic() + seconds
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setsid()
            code = self._meet(scene, seed, expected)
        finally:
            os._exit(code)

    def _meet(self, scene: Path, seed: int, expected: Mapping[str, bytes]) -> int:
        draw = random.Random(f"{seed} {self.number}")
        self.folder.mkdir(parents=True)
        with open(self.folder.with_suffix(".log"), "w") as log:
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
            faulthandler.enable()
            work = self.folder / "scene"
            work.mkdir()
            for name in self.target.needs:
                (shutil.copytree if (scene / name).is_dir() else shutil.copy)(scene / name, work / name)
            os.chdir(work)
            files = sorted({path for pattern in self.target.patterns for path in work.glob(pattern) if path.is_file()})
            files = [path for path in files if path.name not in _UNREAD]
            # Every kind of file as often as the others: there are many more chunks than manifests.
            kinds = sorted({(path.parent.parent.name if path.name == "0" else "", path.suffix) for path in files})
            kind = draw.choice(kinds)
            path = draw.choice(
                [one for one in files if (one.parent.parent.name if one.name == "0" else "", one.suffix) == kind]
            )
            answer = draw.choice(self.target.answers)
            how = damage(path, files, draw)
            print(f"{self.target.name}: {path.relative_to(work)}: {how}; {answer}", flush=True)
            try:
                found = ANSWERS[answer](work)
            except HeadroomError as error:
                print(f"named: {error}", flush=True)
                return 1
            except OSError as error:  # the command line names the file and the reason
                print(f"named: {error}", flush=True)
                return 1
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
                return 2
            is_same = found == expected[answer]
            print("identical" if is_same else "wrong", flush=True)
            return 0 if is_same else 3

    def outcome(self) -> str | None:
        """Return how it ended; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            if time.monotonic() < self.deadline:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return "hang"
        code = os.waitstatus_to_exitcode(status)
        return OUTCOMES[code] if 0 <= code <= 3 else "traceback"


def main() -> int:
    """Run the mutations, print the counts, and keep what is left of those that are wrong."""
    parser = argparse.ArgumentParser(description="Damage files at random and let the commands meet them.")
    parser.add_argument("--count", type=int, default=1200, help="mutations (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all choices (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation, to repeat one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time (%(default)s)")
    parser.add_argument("--seconds", type=float, default=90.0, help="deadline of each (%(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for logs and damaged files; a temporary one by default")
    options = parser.parse_args()
    base = options.keep or Path(tempfile.mkdtemp(prefix="headroom-fuzz-"))
    scene = base / "scene"
    if "HEADROOM_FUZZ_SCENE" in os.environ:  # the child that makes the scene: threads that it starts end with it
        make_scene(Path(os.environ["HEADROOM_FUZZ_SCENE"]))
        return 0
    os.environ["HEADROOM_FUZZ_SCENE"] = str(scene)
    if not scene.is_dir():
        subprocess.run([sys.executable, __file__], check=True)
    return _run_all(options, base, scene)


def _run_all(options: argparse.Namespace, base: Path, scene: Path) -> int:
    expected = _expect(base, scene)
    deck = [target for target in TARGETS for _ in range(target.share)]
    todo = [
        Case(k, base / f"{k:05d}", deck[k * 37 % len(deck)])
        for k in range(options.first, options.first + options.count)
    ]
    counts: dict[str, Counter[str]] = {target.name: Counter() for target in TARGETS}
    running: list[Case] = []
    begun = time.monotonic()
    while todo or running:
        while todo and len(running) < options.jobs:
            running.append(todo.pop(0))
            running[-1].start(scene, options.seed, expected, options.seconds)
        for case in list(running):
            if (outcome := case.outcome()) is None:
                continue
            running.remove(case)
            counts[case.target.name][outcome] += 1
            log = case.folder.with_suffix(".log")
            if outcome in ("traceback", "wrong", "hang"):
                lines = log.read_text(errors="replace").splitlines() if log.exists() else []
                first, last = (lines[0], lines[-1]) if lines else ("", "")
                print(f"{outcome}: mutation {case.number} ({log}): {first}\n    {last}")
            else:
                shutil.rmtree(case.folder, ignore_errors=True)
        time.sleep(0.01)
    total = sum(counts.values(), Counter())
    width = max(map(len, counts))
    print(f"{'':{width}}" + "".join(f"{name:>11}" for name in OUTCOMES))
    for name, own in [*counts.items(), ("all", total)]:
        print(f"{name:{width}}" + "".join(f"{own[outcome]:11}" for outcome in OUTCOMES))
    print(f"seed {options.seed}, {sum(total.values())} mutations in {time.monotonic() - begun:.0f} s")
    failed = any(total[outcome] for outcome in ("traceback", "wrong", "hang"))
    if not failed and options.keep is None:
        shutil.rmtree(base)
    return int(failed)


def _expect(base: Path, scene: Path) -> dict[str, bytes]:
    """Return what every command gives where nothing is damaged, each found in a process of its own."""
    for name, answer in ANSWERS.items():
        kept = base / f"{name}.expected"
        if (pid := os.fork()) == 0:
            code = 1
            try:
                work = Path(shutil.copytree(scene, base / f"undamaged-{name}" / "scene"))
                os.chdir(work)
                kept.write_bytes(answer(work))
                code = 0
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise SystemExit(f"{name} fails on undamaged files")
        shutil.rmtree(base / f"undamaged-{name}")
    return {name: (base / f"{name}.expected").read_bytes() for name in ANSWERS}


if __name__ == "__main__":
    sys.exit(main())
