"""What a new decoder finds in the maps of a student, and how FM's gradients compare with KD's."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments import feature_maps
from experiments.feature_maps import collect, compared, markdown, trained_decoder
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.runs import RunDir, save_keras


def test_gradients_are_compared_over_the_weights_that_both_reach():
    # (3, 4, 0) is 5 long, (0, 2, 0) 2; cosine 8 / (5 * 2)
    ratio, cosine = compared(
        [tf.constant([[3.0], [4.0]]), tf.constant([0.0]), None, tf.constant([7.0])],
        [tf.constant([[0.0], [2.0]]), tf.constant([0.0]), tf.constant([9.0]), None],
    )
    assert ratio == pytest.approx(2.5)
    assert cosine == pytest.approx(0.8)


@pytest.mark.slow
def test_a_decoder_finds_what_is_there_and_nothing_in_noise():
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(256, 2, 2, 4)).astype(np.float32)
    kernel = rng.normal(size=(4, 3)).astype(np.float32)
    for targets, low, high in (
        (maps @ kernel, 0.0, 0.02),
        (rng.normal(size=(256, 2, 2, 3)).astype(np.float32), 0.8, 1.2),
    ):
        keras.utils.set_random_seed(0)
        decoder = keras.Sequential([keras.Input((2, 2, 4)), keras.layers.Conv2D(3, 1)])
        trained_decoder(decoder, maps, targets, Config(learning_rate=0.03, weight_decay=0.0))
        error = np.mean((decoder(maps) - targets) ** 2) / np.mean(targets**2)
        assert low <= error <= high


@pytest.mark.slow
def test_students_of_a_run_are_measured(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_maps, "RESULTS", tmp_path)
    monkeypatch.setattr(feature_maps, "EPOCHS", 2)
    collect("discs", [str(tiny_run.path)])
    rows = read_rows(tmp_path / "discs_feature_maps.csv")
    assert [row["method"] for row in rows] == ["direct", "bicubic", "thumbnet"]
    for row in rows:
        assert 0 < float(row["fm"]) < 2
        assert float(row["gradient_ratio"]) > 0
        assert -1 <= float(row["cosine"]) <= 1
    fm = {row["method"]: float(row["fm"]) for row in rows}
    first = markdown(rows).splitlines()[2]
    assert f"{min(fm.values()):.3f}" in first


def test_another_teacher_is_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_maps, "RESULTS", tmp_path)
    other = RunDir(shutil.copytree(tiny_run.path, tmp_path / "other"))
    teacher = other.load_model("original", "teacher")
    teacher.set_weights([weight + 0.01 for weight in teacher.get_weights()])
    save_keras(teacher, other.method("original") / "teacher.keras")
    with pytest.raises(UserError, match="all runs must have the T of"):
        collect("discs", [str(tiny_run.path), str(other.path)])
    assert not list(tmp_path.glob("*.csv"))
