"""One process, two logical CPU devices: enough to test distribution without an accelerator."""

import gc
import os

import thumbnet_tf  # noqa: F401 - before TensorFlow, for which it chooses oneDNN

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from cache_helpers import cached  # noqa: F401 - fixtures for all
from run_helpers import disc_files, quick, run_copy, tiny_run, train_tiny  # noqa: F401
from serving_fixtures import ask, exported, grpc_address, kserve_address  # noqa: F401
from teacher_helpers import own, tinted  # noqa: F401
from train_helpers import config, direct_run, folder, kept, staged_run  # noqa: F401

from thumbnet_tf import backbones

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
gc.freeze()  # nothing of TensorFlow's modules is garbage, and searching them costs a twentieth of the time


# modules whose fixtures take long: each stays on one worker, so that they are set up once
TOGETHER = (
    "test_android",
    "test_benchmark_training",
    "test_parity",
    "test_qat",
    "test_tfds_sources",
    "test_tflite",
)


def pytest_itemcollected(item):
    """Keeps the tests that share an export, or a module's slow fixture, on one worker."""
    module = item.module.__name__
    if "exported" in item.fixturenames:
        item.add_marker(pytest.mark.xdist_group("exported"))
    elif module in TOGETHER:
        item.add_marker(pytest.mark.xdist_group(module))


@pytest.fixture(autouse=True)
def float32_policy():
    """Leaves no precision policy of one test to the next."""
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def tiny_resnet(monkeypatch):
    """Makes `resnet18` two stages of one block: the real entry points run, in a second."""
    monkeypatch.setitem(backbones.RESNETS, "resnet18", ((1, 1), False))


@pytest.fixture
def photos():
    """Returns a function `(count, size, seed) -> uint8 (count, size, size, 3)` of smooth, textured, coloured images."""

    def render(count: int, size: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:size, :size] / size
        images = []
        for _ in range(count):
            fx, fy, phase = rng.uniform(-8, 8), rng.uniform(-8, 8), rng.uniform(0, 6)
            pattern = np.sin(2 * np.pi * (fx * x + fy * y) + phase)[..., None] * rng.uniform(10, 60, 3)
            light = (x * rng.uniform(-80, 80) + y * rng.uniform(-80, 80))[..., None]
            noise = rng.normal(0, 8, (size, size, 3))
            images.append(rng.uniform(60, 190, 3) + pattern + light + noise)
        return np.clip(np.rint(images), 0, 255).astype(np.uint8)

    return render
