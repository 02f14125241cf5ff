"""A small finished run, trained once for all tests that use one up."""

import dataclasses
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import write_pngs

from thumbnet_tf import backbones, export, parity, variants
from thumbnet_tf.config import Config
from thumbnet_tf.export import Options
from thumbnet_tf.runs import RunDir
from thumbnet_tf.train import train

CLASSES = ("blue_disc", "green_disc", "red_disc")
IMAGE_SIZE, RATIO = 32, 2


def disc(label: int, seed: int, size: int = 40) -> np.ndarray:
    """Returns a noisy disc in the class's colour on a grey gradient, uint8 (size, size + 6, 3)."""
    rng = np.random.default_rng([label, seed])
    y, x = np.mgrid[:size, : size + 6]
    image = 100.0 + 60 * x[..., None] / size + rng.normal(0, 12, (size, size + 6, 3))
    centre = rng.uniform(0.35, 0.65, 2) * size
    inside = np.hypot(y - centre[0], x - centre[1]) < rng.uniform(0.2, 0.35) * size
    colour = np.full(3, 40.0)
    colour[2 - label] = 220.0
    image[inside] = colour + rng.normal(0, 12, (inside.sum(), 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def write_discs(root: Path, count: int) -> Path:
    """Writes `count` PNG files to a folder for each class."""
    for label, name in enumerate(CLASSES):
        write_pngs(root / name, (disc(label, i) for i in range(count)))
    return root


@functools.cache  # a fixture imported by several modules would run once for each
def _trained(folder: Path, **changes) -> Path:
    cfg = Config(
        run_dir=str(folder / "run"),
        dataset=f"folder:{write_discs(folder / 'images', 12)}",
        image_size=IMAGE_SIZE,
        ratio=RATIO,
        augment="none",
        width=0.0625,
        downscaler_width=4,
        batch_size=8,
        teacher_epochs=2,
        epochs=1,
        methods=("direct", "bicubic", "thumbnet"),
        strategy="none",
        teacher_cache="off",
        tensorboard=False,
    )
    cfg = dataclasses.replace(cfg, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.RESNETS, "resnet18", ((1, 1), False))  # two stages of one block: trains in seconds
        return train(cfg).path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> RunDir:
    """Returns a finished run of three methods on 32 x 32 discs; read it, and copy it before changing it."""
    return RunDir(_trained(tmp_path_factory.getbasetemp() / "tiny_run"))


@pytest.fixture
def run_copy(tiny_run, tmp_path) -> RunDir:
    """Returns a copy of the tiny run that may be changed."""
    return RunDir(shutil.copytree(tiny_run.path, tmp_path / "copy"))


@pytest.fixture
def train_tiny(tmp_path):
    """Returns a function that trains such a run with other options."""
    return lambda **changes: RunDir(_trained(tmp_path / "run", **changes))


@pytest.fixture(scope="session")
def disc_files(tiny_run) -> list[str]:
    """Returns four of its images, of all classes."""
    images = tiny_run.path.parent / "images"
    return [str(images / name) for name in ("blue_disc/0.png", "green_disc/3.png", "red_disc/10.png", "red_disc/2.png")]


def export_options(run: RunDir, out: Path, **changes) -> Options:
    """Returns options that export a run without TFLite files."""
    return Options(run_dir=str(run.path), out=str(out), **{"variants": (), **changes})


@pytest.fixture
def quick(monkeypatch):
    """Leaves out what takes time and is tested elsewhere: writing SavedModels and measuring."""

    def compare(subjects, models, split, cfg):
        row = {"bytes": 10, "examples": 9, "keras_top1": "0.900000", "agreement": "1"}
        row |= {"median_score_diff": "0", "max_score_diff": "0.001"}  # a few pixels on another level are no fault
        times = {"latency_ms_p50": "1", "latency_ms_p95": "2"}
        lost = {"int8": 0.5, "dynamic": 0.004}
        return [
            {"artifact": s.artifact, "variant": s.variant, "threads": t, "top1": f"{0.9 - lost.get(s.variant, 0):.6f}"}
            | row
            | times
            for s in subjects
            for t in (1, 2)
        ]

    def write(folder, chosen, **_):
        folder.mkdir()
        for name in chosen:
            (folder / variants.file_name("thumbnet", name)).write_bytes(b"model")

    facts = {"name": "thumbnet", "signatures": {}, "weights_sha256": "0"}
    monkeypatch.setattr(export, "_write_saved_models", lambda *_: {"thumbnet": facts})
    monkeypatch.setattr(parity, "compare", compare)
    monkeypatch.setattr(variants, "write", write)
