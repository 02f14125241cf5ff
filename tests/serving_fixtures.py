"""An export and servers of it, started once for all tests."""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from run_helpers import CLASSES
from serving_helpers import grpc_server, server_process

from thumbnet_tf import backbones, serving, thumbnet
from thumbnet_tf.runs import RunDir


@functools.cache
def _export(run: RunDir, folder: Path) -> Path:
    """Writes the SavedModel of a run, its manifest and a TFLite downscaler, and returns where."""
    cfg = run.config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.RESNETS, "resnet18", ((1, 1), False))  # as it was trained
        models = thumbnet.deployed(cfg, run.load_model("thumbnet", "shipped"), run.load_model("original", "teacher"))
    serving.save(folder, models.shipped, serving.thumbnet_endpoints(cfg, CLASSES, models))
    facts = {
        "image_size": cfg.image_size,
        "thumbnail_size": cfg.thumbnail_size,
        "ratio": cfg.ratio,
        "crop_fraction": cfg.crop_fraction,
    }
    (folder / "manifest.json").write_text(json.dumps({"preprocessing": facts}))
    (folder / "tflite").mkdir()
    (folder / "tflite" / "downscaler_float32.tflite").write_bytes(_tflite(models.downscaler, cfg.image_size))
    return folder


def _tflite(downscaler: keras.Model, size: int) -> bytes:
    def downscale(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"thumbnail": tf.cast(downscaler(tf.cast(image, tf.float32), training=False), tf.uint8)}

    archive = keras.export.ExportArchive()
    archive.track(downscaler)
    archive.add_endpoint("serving_default", downscale, [tf.TensorSpec((1, size, size, 3), tf.uint8, "image")])
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


@pytest.fixture(scope="session")
def export(tiny_run, tmp_path_factory) -> Path:
    """Returns the folder of an exported version."""
    return _export(tiny_run, tmp_path_factory.getbasetemp() / "served" / "thumbnet" / "1")


@pytest.fixture(scope="session")
def ask(export) -> Callable[..., dict[str, np.ndarray]]:
    """Returns a function that calls a signature of the SavedModel directly, without a server."""
    model = tf.saved_model.load(str(export))

    def call(signature: str, values) -> dict[str, np.ndarray]:
        return {key: value.numpy() for key, value in model.signatures[signature](tf.constant(values)).items()}

    return call


@pytest.fixture(scope="session")
def grpc_address(export) -> Iterator[str]:
    """Serves the export as versions 1 (label stable) and 2 (canary)."""
    with grpc_server({1: export, 2: export}, {"stable": 1, "canary": 2}) as address:
        yield address


@pytest.fixture(scope="session")
def kserve_address(export) -> Iterator[str]:
    """Serves the export by KServe."""
    pytest.importorskip("kserve", reason="KServe isn't installed; `pip install -e '.[serving]'` does it")
    with server_process("kserve", export) as (address, _):
        yield address
