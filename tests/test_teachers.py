"""Files that a teacher is read from, and what is told when one is fed otherwise than it expects."""

import keras
import numpy as np
import pytest
from keras import layers
from teacher_helpers import SIZE, teacher

from thumbnet_tf import teacher_check, teachers, thumbnet
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.teacher_check import judge


@keras.saving.register_keras_serializable(package="elsewhere")
class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def test_files_that_can_not_be_loaded(own, tmp_path, monkeypatch):
    cfg = own()
    path = tmp_path / "mine.keras"
    path.write_bytes(b"PK not an archive")
    with pytest.raises(UserError, match=r"can't be loaded: it is no .keras file, or is cut off; save the model anew"):
        teachers.load(cfg)
    cfg_of_h5 = own(teacher=str(tmp_path / "mine.h5"))
    path.rename(tmp_path / "mine.h5")
    with pytest.raises(UserError, match=r"a .keras file \(model.save.*mine.h5, which is a file of another kind"):
        teachers.load(cfg_of_h5)
    path.mkdir()
    with pytest.raises(UserError, match="must be a .keras file that is there.*mine.keras, which is a folder"):
        teachers.load(cfg)
    path.rmdir()
    teacher().save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"no readable Keras model \(model.weights.h5 in it is damaged\)"):
        teachers.load(cfg)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="it is no .keras file, or is cut off"):
        teachers.load(cfg)
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.GlobalAveragePooling2D()(layers.Lambda(lambda x: 2 * x)(image))
    keras.Model(image, layers.Dense(3)(x)).save(path)
    with pytest.raises(UserError, match="can't be loaded: it holds a Lambda, which is code that isn't run"):
        teachers.load(cfg)
    keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(Doubled()(image)))).save(path)
    keras.saving.get_custom_objects().pop("elsewhere>Doubled")
    monkeypatch.delattr(__import__(__name__), "Doubled")
    with pytest.raises(UserError, match=r"code that isn't Keras' own; .* \(class '(elsewhere>)?Doubled'\)"):
        teachers.load(cfg)


def test_a_trained_teacher_at_chance_is_warned_of(tmp_path, caplog):
    labels = np.repeat([0, 1], [40, 60])  # 0.6 by the commonest class, two standard errors above: 0.6 + 2 * 0.049
    for right, warned in (("0.71", 0), ("0.69", 1)):
        (tmp_path / "metrics.csv").write_text(f"epoch,val_accuracy\n1,0.9\n2,{right}\n")
        caplog.clear()
        teacher_check.warn_at_chance(tmp_path, labels)
        assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert "69.0 % of 100 validation images right" in caplog.text


def scores(found, count=4, scale=4.0):
    """Returns logits `(n, count)` that answer the classes `found`, as sure as `scale`."""
    return scale * np.eye(count)[found]


NAMES = ("ant", "bee", "cat", "dog")
STUCK = dict.fromkeys(("0..255", "0..1", "-1..1", "caffe", "torch"), scores(np.zeros(200, int)))


def test_judge_names_what_is_wrong():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    right = np.where(rng.random(200) < 0.9, labels, rng.integers(0, 4, 200))
    judge({**STUCK, "0..255": scores(right)}, labels, NAMES, "0..255")
    with pytest.raises(UserError, match="--teacher_input=torch seems to be what T expects"):
        judge({**STUCK, "torch": scores(right)}, labels, NAMES, "0..255", asked=True)
    swapped = np.array([1, 0, 2, 3])[right]
    with pytest.raises(UserError, match="in another order than the dataset's: as bee, ant, cat, dog it answers"):
        judge({**STUCK, "0..255": scores(swapped)}, labels, NAMES, "0..255")
    with pytest.raises(UserError, match="as dog, ant, bee, cat and --teacher_input=caffe it answers"):
        judge({**STUCK, "caffe": scores(np.array([1, 2, 3, 0])[right])}, labels, NAMES, "0..255")
    with pytest.raises(UserError, match="its answers don't depend on the images' classes"):
        judge({**STUCK, "0..255": scores(rng.integers(0, 4, 200))}, labels, NAMES, "0..255")


def test_few_images_do_not_refuse_a_teacher_that_seems_blind(caplog):
    labels = np.array([0, 0, 1, 1])  # all four right, which chance might do as well
    answers = {
        **dict.fromkeys(("0..1", "-1..1", "caffe", "torch"), scores(np.zeros(4, int), 2)),
        "0..255": scores(labels, 2),
    }
    judge(answers, labels, ("good", "broken"), "0..255")
    assert "don't depend on the images' classes" in caplog.text and "so few images say little" in caplog.text


def test_a_teacher_that_a_run_has_saved_scales_its_input_itself(own, tmp_path):
    thumbnet.build_teacher(Config(image_size=SIZE, width=0.0625), 3).save(tmp_path / "copy.keras")
    with pytest.raises(
        FlagError, match="--teacher_input must be auto for a T that a run has saved.*Received: 0..1 with"
    ):
        teachers.load(own(teacher=str(tmp_path / "copy.keras"), teacher_input="0..1"))


def test_judge_finds_two_of_many_classes_swapped():
    names = tuple(f"kind {index:02d}" for index in range(24))
    labels = np.repeat(np.arange(24), 21)
    order = np.arange(24)
    order[[3, 17]] = 17, 3  # 42 of 504 images: 8 points
    answers = {mode: scores(np.zeros(504, int), 24) for mode in STUCK}
    with pytest.raises(UserError, match=r"answers 100.0 % right.*a T that answers 91.7 % of 504"):
        judge({**answers, "0..255": scores(order[labels], 24)}, labels, names, "0..255")
    judge({**answers, "0..255": scores(labels, 24)}, labels, names, "0..255")


def test_judge_takes_scores_that_are_far_too_large_for_a_wrong_input(caplog):
    caplog.set_level("INFO")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    right = np.where(rng.random(200) < 0.9, labels, rng.integers(0, 4, 200))
    wrong = np.mean(right != labels)  # at a scale of 100 the mean cross-entropy is 100 times that, at 4 below 1
    assert 0.03 < wrong < 0.12
    answers = {**STUCK, "0..255": scores(right, scale=100.0), "0..1": scores(right)}
    with pytest.raises(UserError, match=r"--teacher_input=0..1 seems.*than half the cross-entropy.*=0..255 insists"):
        judge(answers, labels, NAMES, "0..255")
    judge(answers, labels, NAMES, "0..255", asked=True)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    judge({**answers, "0..1": scores(right, scale=60.0)}, labels, NAMES, "0..255")  # not half
    judge({**answers, "0..255": scores(right, scale=10.0)}, labels, NAMES, "0..255")  # 10 * 0.08 is better than log 4


def test_judge_takes_a_good_teacher_of_unbalanced_classes():
    labels = np.repeat([0, 1], [485, 15])
    found = labels.copy()
    found[[0, 1, 490, 491, 492, 493, 494, 495]] ^= (
        1  # 98.4 % right where 97 % are of one class, 6 of 15 rare ones missed
    )
    stuck = scores(np.zeros(500, int), 2)
    others = dict.fromkeys(("0..1", "-1..1", "caffe", "torch"), stuck)
    judge({"0..255": scores(found, 2), **others}, labels, ("good", "broken"), "0..255")
    with pytest.raises(UserError, match="its answers don't depend on the images' classes"):
        judge({"0..255": stuck, **others}, labels, ("good", "broken"), "0..255")
    judge({"0..255": stuck, **others}, labels * 0, ("good", "broken"), "0..255")  # one class only shows nothing
