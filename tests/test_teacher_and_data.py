"""What is told of a teacher and of the images that it meets: seen before, framed otherwise, too few of a class."""

import dataclasses
import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from teacher_helpers import CLASSES, SIZE, teacher, trunk

from thumbnet_tf import foreign, teacher_check, thumbnet
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import UserError
from thumbnet_tf.data import sources
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL
from thumbnet_tf.teacher_check import judge


def warnings(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return found


def test_images_that_the_run_has_cut_may_have_trained_the_teacher(own, caplog):
    cfg = own(teacher("0..255")).resolved()
    mine = foreign.standardise(teacher("0..255"), SIZE, "0..255")
    dataset = sources.load(cfg)
    teacher_check.check_classes(mine, cfg, dataset)
    assert warnings(caplog) == []
    for cut, said in ((("validation",), "the validation images"), (("test", "validation"), "the test and validation")):
        teacher_check.check_classes(mine, cfg, dataclasses.replace(dataset, cut=cut))
        [text] = warnings(caplog)
        assert text.startswith(f"T must not have been trained on {said}") and "PATH/{train,validation,test}" in text


def test_the_teacher_of_a_run_on_other_data_is_told(own, tmp_path, caplog):
    cfg = own(teacher=str(tmp_path / "first")).resolved()
    dataset = sources.load(cfg)
    run = RunDir(tmp_path / "first")
    (run.path / ORIGINAL).mkdir(parents=True)
    (run.path / "config.json").write_text(cfg.to_json())
    mine = foreign.standardise(teacher("0..255"), SIZE, "0..255")
    facts = dataset.facts()
    for fingerprint, told in ((dataset.fingerprint, 0), ("0123456789abcdef", 1)):
        (run.path / "data.json").write_text(json.dumps(facts | {"fingerprint": fingerprint}))
        teacher_check.check_classes(mine, cfg, dataclasses.replace(dataset, cut=("test",)))
        found = warnings(caplog)
        assert len(found) == told
        assert all(f"T's run {run.path} had other data than this one" in text for text in found)


def test_a_teacher_of_whole_images_is_told(own, tinted, caplog):
    for index in range(12):  # of 20: what tells the class is at the rim, which the usual crop cuts off
        for path in tinted.glob(f"validation/*/{index}.png"):
            image = tf.io.decode_png(path.read_bytes()).numpy()
            image[3:-3, 3:-3] = 128
            path.write_bytes(tf.io.encode_png(image).numpy())
    mine = foreign.standardise(teacher("0..255"), SIZE, "0..255")
    for crop, told in ((0.75, 1), (1.0, 0)):
        cfg = own(crop_fraction=crop)
        teacher_check.check_classes(mine, cfg, sources.load(cfg))
        assert [text.split(" of the images right")[0] for text in warnings(caplog)] == [
            "--crop_fraction=1 does better: T answers 100.0 %"
        ] * told


def test_many_classes_do_not_hide_a_wrong_input():
    """Of 1,000 classes and 512 images, most of any answers are right in some order of the classes."""
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 1000, 512))
    names = tuple(map(str, range(1000)))
    right = np.where(rng.random(512) < 0.3, labels, rng.integers(0, 1000, 512))
    noise = {mode: np.eye(1000)[rng.integers(0, 1000, 512)] for mode in foreign.INPUTS}
    with pytest.raises(UserError, match="--teacher_input=torch seems to be what T expects"):
        judge({**noise, "torch": np.eye(1000)[right]}, labels, names, "0..255")
    with pytest.raises(UserError, match=r"no other --teacher_input does clearly better \(for other orders of the cl"):
        judge(noise, labels, names, "0..255")


def test_an_order_counts_by_images_that_it_was_not_made_from():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 5)
    found = rng.integers(0, 100, 500)
    order = teacher_check._order(found, labels, 100)
    assert sorted(order) == list(range(100))
    assert np.mean(order[found] == labels) > 0.15  # where chance is 0.01
    assert np.mean(teacher_check._right_reordered(found, labels, 100)) < 0.05
    weak = np.where(rng.random(500) < 0.45, labels, found)
    answers = {mode: np.zeros((500, 100)) for mode in foreign.INPUTS}
    judge({**answers, "0..255": np.eye(100)[weak]}, labels, tuple(map(str, range(100))), "0..255")
    swapped = (np.arange(100) ^ 1)[np.where(rng.random(500) < 0.9, labels, 0)]
    with pytest.raises(
        UserError, match="in another order than the dataset's: as 1, 0, 3, 2, 5, 4, 7, 6, ... it answers"
    ):
        judge({**answers, "0..255": np.eye(100)[swapped]}, labels, tuple(map(str, range(100))), "0..255")


def test_the_sample_grows_with_the_classes(own, monkeypatch):
    asked = []
    monkeypatch.setattr(teacher_check, "_answers", lambda teacher, images, used: {used: None})
    monkeypatch.setattr(teacher_check, "judge", lambda answers, labels, names, used, asked: None)
    monkeypatch.setattr(teacher_check.pipeline, "eval_images", lambda split, cfg, ids: asked.append(len(ids)))
    cfg = own(crop_fraction=1.0)
    for images, classes in ((100, 3), (9999, 3), (9999, 300), (9999, 1000)):
        split = types.SimpleNamespace(num_examples=images, labels=np.zeros(images, int))
        dataset = sources.Dataset("", tuple(map(str, range(classes))), {"validation": split}, "")
        teacher_check._try(None, cfg, dataset)
    assert asked == [100, 512, 1500, 2048]


def flattened() -> keras.Model:
    model = keras.Sequential([*trunk("0..255").layers, layers.Flatten(), layers.Dense(3, name="head")])
    kernel = np.zeros((4, 4, 8, 3), np.float32)
    for index, channel in enumerate((2, 1, 0)):
        kernel[..., :3, index] = -1
        kernel[..., channel, index] = 2
    model.get_layer("head").set_weights([kernel.reshape(128, 3), np.zeros(3)])
    return model


def test_direct_can_not_be_had_where_layers_start_anew(own):
    mine = foreign.standardise(flattened(), SIZE, "0..255")
    assert thumbnet.build_student(own(), mine)[1] == ["head"]
    message = "direct can't be had of this T: .* stay random on thumbnails; leave it out of --methods.*: head$"
    with pytest.raises(UserError, match=message):
        build_trainer("direct", own(), len(CLASSES), mine)
    with pytest.raises(UserError, match=message):  # before anything is trained
        thumbnet.check(own(methods=("bicubic", "direct")), mine)
    thumbnet.check(own(methods=("bicubic",)), mine)
