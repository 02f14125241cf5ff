"""The training benchmark: every case runs, the floor is the sum of its parts, the table says what was measured."""

import csv
import math

import keras
import pytest
import tensorflow as tf
from model_helpers import with_random_statistics

from thumbnet_tf import benchmark, benchmark_rivals, benchmark_training, losses, thumbnet
from thumbnet_tf.config import Config

TINY = Config(
    image_size=32,
    ratio=2,
    width=0.0625,
    downscaler_width=4,
    batch_size=4,
    fm_tap="stage1",
    mapping_epochs=1,
    tensorboard=False,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Returns the rows of a tiny configuration, measured by the command's own function."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_training, "DEFAULTS", (TINY,))
        patch.setattr(benchmark_training, "_STEPS", 2)
        patch.setattr(benchmark_training.timing, "slowdown", lambda dtype: 1.0)  # all cases, on any machine
        patch.setitem(benchmark_training.backbones.RESNETS, "resnet18", ((1, 1), False))
        benchmark.main(benchmark.Options(what="training", out=str(folder), rounds=2))
    assert (folder / "benchmark_training.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / "benchmark_training.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_case_is_measured(rows):
    assert ",".join(rows[0]) == "case,image_size,ratio,batch,median,p10,p90,unit"
    assert [row["case"] for row in rows] == list(benchmark_training.ABOUT)
    for row in rows:
        assert (row["image_size"], row["ratio"], row["batch"], row["unit"]) == ("32", "2", "4", "images/s")
        assert 0 < float(row["p10"]) <= float(row["median"]) <= float(row["p90"])


@pytest.mark.slow
def test_the_floor_is_the_sum_of_its_parts(rows):
    # with two rounds the median is their mean, so the medians of the parts' times add up
    seconds = {row["case"]: 1 / float(row["median"]) for row in rows}
    parts = sum(seconds[name] for name in ("part_teacher", "part_student", "part_optimizer"))
    assert math.isclose(seconds["floor"], parts, rel_tol=1e-2)


@pytest.mark.slow
def test_the_table_shows_ratios_to_the_uncached_step(rows):
    lines = benchmark_training.markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "images/s, 32 to 16 px, batch 4" in lines[0]
    assert lines[2].startswith("| `step_uncached` |") and lines[2].endswith("| 1.00 |")
    median = {row["case"]: float(row["median"]) for row in rows}
    assert lines[3].endswith(f"| {median['step_cached'] / median['step_uncached']:.2f} |")


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("rival", ["plain_kd_loop", pytest.param("keras_distiller", marks=pytest.mark.slow)])
def test_rivals_minimise_the_same_losses(rival, photos):
    """The sum of CL and KD, by which `bicubic_kd` learns; Keras' distiller takes their mean."""
    teacher = with_random_statistics(thumbnet.build_teacher(TINY, 3))
    images, labels = tf.constant(photos(4, 32)), tf.constant([0, 2, 1, 2])
    keras.utils.set_random_seed(3)
    taught, student = benchmark_rivals._joined(TINY, teacher)
    logits, soft = student(tf.cast(images, tf.float32), training=True), taught(images)
    cl, kd = losses.classification(labels, logits), losses.distillation(soft, logits, TINY.temperature)
    assert tf.reduce_min(tf.abs(kd)) > 0.01
    keras.utils.set_random_seed(3)  # for the same E
    step = getattr(benchmark_rivals, rival)(TINY, teacher, images, labels)
    found = step() if rival == "plain_kd_loop" else 2 * step()[0]
    assert float(found) == pytest.approx(float(tf.reduce_mean(cl + kd)), rel=1e-4)
