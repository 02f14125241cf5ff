"""A small image folder, a configuration to train on it in seconds, and what to compare of two runs."""

import csv
import os
import shutil

import keras
import numpy as np
import pytest
from data_helpers import write_pngs

from thumbnet_tf import loop
from thumbnet_tf.config import Config
from thumbnet_tf.runs import RunDir
from thumbnet_tf.train import train

CLASSES = ("blue", "green", "red")


@pytest.fixture
def folder(tmp_path, photos):
    """Returns an image folder of three classes, tinted so that they can be told apart."""
    root = tmp_path / "photos"
    for index, name in enumerate(CLASSES):
        for part, count in (("train", 10), ("test", 3)):
            images = photos(count, 40, seed=index if part == "train" else 10 + index).astype(int)
            images[..., 2 - index] += 60
            write_pngs(root / part / name, np.clip(images, 0, 255).astype(np.uint8))
    return root


@pytest.fixture
def config(tmp_path, folder, tiny_resnet):
    def make(name: str = "run", **values) -> Config:
        common = {
            "dataset": f"folder:{folder}",
            "image_size": 32,
            "ratio": 2,
            "width": 0.0625,
            "downscaler_width": 4,
            "fm_tap": "stage1",
            "batch_size": 4,
            "teacher_epochs": 1,
            "epochs": 2,
            "checkpoint_seconds": 0.0,
            "methods": ("direct", "thumbnet"),
            "strategy": "none",
            "teacher_cache": "off",  # tests of the cache say what they want of it
            "run_dir": str(tmp_path / name),
        }
        return Config(**{**common, **values})

    return make


@pytest.fixture
def kept(config, tmp_path, tmp_path_factory):
    """Returns a function that trains `config(**values)` unless an earlier test has, and returns a copy of that run.

    Its configuration names the images of the test that trained it, which were the same then: don't load data by it.
    """

    def copy(name: str, **values) -> RunDir:
        first = tmp_path_factory.getbasetemp() / name
        if not (first / "results.csv").exists():
            train(config(run_dir=str(first), **values))
        return RunDir(shutil.copytree(first, tmp_path / "run"))

    return copy


@pytest.fixture
def direct_run(kept) -> RunDir:
    """Returns a finished run of T and `direct`, in the place of `config(methods=("direct",))`."""
    return kept("direct_run", methods=("direct",))


@pytest.fixture
def staged_run(kept) -> RunDir:
    """Returns a finished run of T, `direct` and `thumbnet`, in the place of `config(mapping_epochs=1)`."""
    return kept("staged_run", mapping_epochs=1)


def rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def state_of(run: RunDir) -> dict:
    """Returns all that a finished run must have alike: weights, metric rows without times, results."""
    weights = {}
    for path in sorted(run.path.rglob("*.keras")):
        model = keras.models.load_model(path, compile=False)
        for variable in model.variables:
            weights[f"{path.relative_to(run.path)}:{variable.path}"] = variable.numpy()
    metrics = {}
    for path in sorted(run.path.rglob("metrics.csv")):
        metrics[str(path.relative_to(run.path))] = [{**row, "images_per_second": ""} for row in rows(path)]
    return {"weights": weights, "metrics": metrics, "results": (run.path / "results.csv").read_text()}


def assert_same(a: dict, b: dict) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    assert len(a["weights"]) > 50
    for name, value in a["weights"].items():
        np.testing.assert_array_equal(value, b["weights"][name], err_msg=name)
    assert a["metrics"] == b["metrics"]
    assert a["results"] == b["results"]


def interrupt_at(monkeypatch, step: int, signal_number: int) -> list[int]:
    """Sends this process a signal before the given step of the process; returns the growing list of steps taken."""
    compiled, taken = loop._compiled, []

    def wrapped(*args):
        run_step, run_test = compiled(*args)

        def counting_step(batch):
            if len(taken) == step:
                os.kill(os.getpid(), signal_number)
            taken.append(1)
            run_step(batch)

        return counting_step, run_test

    monkeypatch.setattr(loop, "_compiled", wrapped)
    return taken
