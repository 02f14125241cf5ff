"""A T with random statistics, and caches of what it says."""

import keras
import numpy as np
import pytest

from thumbnet_tf import teacher_cache, thumbnet
from thumbnet_tf.config import Config
from thumbnet_tf.data import sources

OUTPUTS = ("logits", "stage1")


@pytest.fixture
def cached(config, monkeypatch):
    """Returns a configuration, its data and a T with random statistics; files hold 8 examples."""
    monkeypatch.setattr(teacher_cache, "BLOCK", 8)
    cfg = config(teacher_cache="all", cached_views=2, augment="crop_flip").resolved()
    dataset = sources.load(cfg, ("train", "validation"))
    return cfg, dataset, random_teacher(cfg)


def random_teacher(cfg: Config, seed: int = 3) -> keras.Model:
    keras.utils.set_random_seed(seed)
    teacher = thumbnet.build_teacher(cfg, 3)
    rng = np.random.default_rng(seed)
    for layer in teacher.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return teacher


def open_caches(cfg, dataset, teacher, outputs=OUTPUTS):
    return teacher_cache.open_caches(cfg, teacher, dataset.splits, dataset.fingerprint, outputs)


def prepare(cfg, dataset, teacher, outputs=OUTPUTS):
    caches = open_caches(cfg, dataset, teacher, outputs)
    teacher_cache.prepare(cfg, teacher, caches)
    return caches


def files_of(caches) -> dict:
    folders = [cache.folder for cache in caches.values()]
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("0*")}
