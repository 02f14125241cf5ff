"""The run directory: identity, lock, what lies where.

<run>/log.txt                    what was logged, over all starts
<run>/config.json, run.flags     what the run is, and the flagfile that repeats it
<run>/data.json                  classes, split sizes, undecodable images, fingerprint of the data
<run>/<method>/                  one folder a method; `original` is the teacher
    checkpoints/                 the last states of an unfinished training
    metrics.csv                  one row an epoch
    student.keras, downscaler.keras, shipped.keras (E and S in one; teacher.keras in original/)
    done.json                    written last: this method is finished
    logits_<split>.npy           its answers, by `evaluate.py`
    tensorboard/                 what TensorBoard shows
    benchmark/                   what `benchmark.py` measured of it
    wire.csv                     bytes and accuracy of thumbnails as files, by `wire.py`
    export/                      weights fine-tuned for export, so that they needn't be made twice
<run>/results.csv                one row a method and split
<run>/benchmark/                 what `benchmark.py --what=training` measured of it
<run>/plots/, report.html        what `plots.py` and `report.py` draw of it, unless --out says otherwise
<run>/lock                       held by the one process that may write here
<run>/start                      by which the machines of a job know that they share the directory
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from thumbnet_tf import downscaler  # noqa: F401 - registers the layers that saved models hold
from thumbnet_tf.config import Config, UserError, to_flagfile
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.files import MACHINE_LOST, check_archive, saving, sync, take_lock, write_atomically
from thumbnet_tf.stages import METHODS


class RunDir:
    """A run's folder on disk."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)

    @classmethod
    def existing(cls, path: str | os.PathLike) -> "RunDir":
        """Opens a run directory that a training has made.

        Raises:
            UserError: when it is none.
        """
        if not path:
            raise UserError("--run_dir must name a run directory made by thumbnet_tf.train. Received: nothing")
        run = cls(path)
        if not os.path.isfile(run.path / "config.json"):  # Path's own raises where a folder can't be entered
            raise UserError(f"--run_dir must hold the config.json of a run made by thumbnet_tf.train. Received: {path}")
        return run

    def config(self) -> Config:
        """Returns the run's configuration.

        Raises:
            UserError: when its file is broken.
        """
        where = self.path / "config.json"
        try:
            text = where.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} can't be read ({type(error).__name__}); restore it") from None
        return dataclasses.replace(Config.from_json(text, str(where)), run_dir=str(self.path))

    def claim(self, cfg: Config) -> None:
        """Makes this the directory of `cfg`, or checks that it already is one of a run of the same configuration.

        Raises:
            UserError: when it belongs to another configuration (the differences are named), or can't be written.
        """
        if (self.path / "data.json").exists():  # until then nothing was trained, and another start may correct it
            self._check_same(self.config(), cfg)
        else:
            self._write(cfg)

    def record(self, cfg: Config) -> None:
        """Notes the configuration of a start that was accepted; methods that an earlier one has finished stay in it."""
        before = [name for name in self.config().methods if self.is_done(name) and name not in cfg.methods]
        self._write(dataclasses.replace(cfg, methods=(*before, *cfg.methods)))

    def _write(self, cfg: Config) -> None:
        write_atomically(self.path / "config.json", cfg.to_json())
        header = f"repeats this run: python -m thumbnet_tf.train --flagfile={self.path}/run.flags --run_dir=NEW"
        write_atomically(self.path / "run.flags", to_flagfile(cfg, header))

    def join(self, cfg: Config) -> None:
        """Checks that the first machine of the job has claimed this directory for the same configuration.

        Raises:
            UserError: when it was started with other flags.
        """
        self._check_same(self.config(), cfg)

    def _check_same(self, old: Config, new: Config) -> None:
        moved = set()  # what data.json identifies by its content, wherever it lies now
        if not (old.trains_teacher or new.trains_teacher):
            moved.add("teacher")
        if old.dataset.startswith("folder:") and new.dataset.startswith("folder:"):
            moved.add("dataset")
        differences = [
            f"{field.name} was {getattr(old, field.name)!r} and is now {getattr(new, field.name)!r}"
            for field in dataclasses.fields(Config)
            if field.metadata["identity"] and getattr(old, field.name) != getattr(new, field.name)
            if field.name not in moved
        ]
        if differences:
            raise UserError(
                f"--run_dir {self.path} holds a run of another configuration: {'; '.join(differences)}. "
                "Choose another --run_dir, or give the flags of the run it holds"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the directory for one process.

        Raises:
            UserError: when another process is at work in it, it is no run's, or it can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.path.iterdir()}
            if not names & {"config.json", "config.json.partial", "lock"} and names:
                raise UserError(
                    "--run_dir must be a new, an empty or a run's directory. "
                    f"Received: {self.path}, which holds other files"
                )
            file = open(self.path / "lock", "w")  # noqa: SIM115 - held open as long as the lock
        except OSError as error:
            raise UserError(
                f"--run_dir can't be written ({error.strerror}); choose another place. Received: {self.path}"
            ) from None
        with file:
            if not take_lock(file):
                raise UserError(
                    f"another process is at work in --run_dir; wait for it or choose another. Received: {self.path}"
                )
            yield

    def method(self, name: str) -> pathlib.Path:
        """Returns the folder of a method."""
        return self.path / name

    def is_done(self, method: str) -> bool:
        """Returns whether a method's training is finished."""
        return (self.method(method) / "done.json").is_file()

    def finished_methods(self) -> list[str]:
        """Returns the finished methods, the teacher first, in the order of `stages.METHODS`."""
        return [name for name in METHODS if self.is_done(name)]

    def load_model(self, method: str, name: str) -> keras.Model:
        """Loads `teacher`, `student` or `downscaler` of a finished method.

        Raises:
            UserError: when the file is missing or broken.
        """
        return load_keras(self.method(method) / f"{name}.keras")

    def logits(self, method: str, split: str) -> np.ndarray:
        """Returns a method's logits `(n, C)` of a split, as evaluation kept them.

        Raises:
            UserError: when the file is missing or broken.
        """
        path = self.method(method) / f"logits_{split}.npy"
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError):
            raise UserError(
                f"the answers to the {split} images are missing or broken; `python -m thumbnet_tf.evaluate "
                f"--run_dir={self.path}` makes them. Received: {path}"
            ) from None

    def data_facts(self) -> dict[str, Any]:
        """Returns what `bind_data` wrote: `classes`, in the order of their labels, `fingerprint` and others.

        Raises:
            UserError: when the file is missing or broken.
        """
        path = self.path / "data.json"
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict):
                raise ValueError
            return found
        except (OSError, ValueError) as error:
            reason = type(error).__name__
            raise UserError(f"a run's data.json can't be read ({reason}); restore it. Received: {path}") from None

    def bind_data(self, facts: Mapping[str, Any]) -> None:
        """Writes `data.json`, or checks that a resumed run's data is what it started with.

        Args:
            facts: `Dataset.facts()` of all splits.

        Raises:
            UserError: when the data changed.
        """
        if (self.path / "data.json").exists():
            self.check_data(facts)
        else:
            write_atomically(self.path / "data.json", json.dumps(facts, indent=2) + "\n")

    def check_data(self, facts: Mapping[str, Any]) -> None:
        """Checks that data loaded anew, or some splits of it, is what the run was trained on.

        Raises:
            UserError: when it is other data, and what differs.
        """
        trained = self.data_facts()
        for key, value in facts.items():
            if key not in trained or key == "dataset":
                continue  # not noted yet when the run began; and its folder may have moved
            before = trained[key]
            if isinstance(value, Mapping) and isinstance(before, Mapping):  # by split
                before = {split: before.get(split) for split in value}
            if before != value and key == "streamed":
                raise UserError(
                    "--memory_limit_gb must leave the training images where they were when this run started, "
                    f"{'read as a stream' if before['train'] else 'in memory'}; give its value of then. "
                    "Received: one that changes it"
                )
            if before != value:
                raise UserError(
                    f"the data changed since this run started ({key} was {_short(before)}, now {_short(value)}); "
                    f"restore it, or start a new --run_dir. Received: {facts['dataset']}"
                )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def load_keras(path: str | os.PathLike) -> keras.Model:
    """Loads a `.keras` file (safe mode on).

    Raises:
        UserError: when it is missing or is no readable Keras model.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"a trained model is expected here; finish the training first. Received: {path}, which doesn't exist"
        )
    try:
        check_archive(path)
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except MACHINE_LOST:  # while all load
        raise
    except Exception as error:  # Keras raises many kinds for a broken archive
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} can't be loaded as a Keras model ({reason}); restore it or train again") from error


def save_keras(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a model beside its place and renames it."""
    partial = path.with_name(f"partial-{path.name}")
    with saving(path):
        model.save(partial)
        os.replace(partial, path)


def finish(folder: pathlib.Path, models: dict[str, keras.Model]) -> None:
    """Saves a method's models, then `done.json`, each through to the disk; then deletes the states they came from.

    What was measured of a training before this one goes first, its rows in the run's `results.csv` included.
    """
    results = folder.parent / "results.csv"
    rows = read_rows(results)
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*folder.glob("logits_*.npy"), folder / "wire.csv"):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "benchmark", ignore_errors=True)
        if any(row.get("method") == folder.name for row in rows):
            write_rows(results, list(rows[0]), [row for row in rows if row.get("method") != folder.name])
    for name, model in models.items():
        save_keras(model, folder / f"{name}.keras")
    done = folder / "done.json"
    with saving(folder):  # in this order: after a loss of power, what is called done is there
        for path in (*(folder / f"{name}.keras" for name in models), folder):
            sync(path)
        write_atomically(done, json.dumps(environment(), indent=2) + "\n")
        for path in (done, folder):
            sync(path)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def environment() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a model depends on."""
    versions = {"python": sys.version.split()[0]}
    for package in ("tensorflow", "keras", "tensorflow-datasets", "thumbnet_tf"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
