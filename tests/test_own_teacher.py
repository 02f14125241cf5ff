"""A teacher of the user's own: laid out flat with the same function, and every mistake told in one line."""

import dataclasses
import json
import math
import pathlib
import re
import shutil
import signal

import keras
import numpy as np
import pytest
from keras import layers
from teacher_helpers import SIZE, teacher, trunk
from train_helpers import interrupt_at

from thumbnet_tf import (
    applications,
    benchmark,
    benchmark_inference,
    benchmark_training,
    costs,
    foreign,
    loop,
    tflite,
    thumbnet,
    variants,
)
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.export import Options, export
from thumbnet_tf.folding import fold
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.runs import RunDir
from thumbnet_tf.train import train
from thumbnet_tf.training_layers import for_training, plain


@pytest.mark.parametrize("expects", ["0..255", "0..1", "-1..1"])
def test_standardised_teacher_is_flat_and_has_the_same_function(expects, photos):
    theirs = teacher(expects)
    ours = foreign.standardise(theirs, SIZE, expects)
    images = photos(6, SIZE).astype(np.float32)
    fed = {"0..255": images, "0..1": images / 255, "-1..1": images / 127.5 - 1}[expects]
    np.testing.assert_allclose(
        keras.ops.softmax(ours(images)["logits"]), theirs(fed, training=False), rtol=1e-4, atol=1e-6
    )
    assert set(ours.output) == {"logits", "depthwise2"} or set(ours.output) == {"logits", "conv3"}
    assert not any(isinstance(layer, (keras.Model, layers.RandomFlip)) for layer in ours.layers)
    assert ours.get_layer("head").activation is keras.activations.linear


def test_what_the_modes_of_keras_applications_give(photos):
    images = photos(2, 8).astype(np.float32)
    image = keras.Input((8, 8, 3))
    for mode, theirs in (
        ("caffe", keras.applications.resnet50),
        ("torch", keras.applications.densenet),
        ("-1..1", keras.applications.mobilenet_v2),
    ):
        found = keras.Model(image, foreign.preprocess(image, mode))(images)
        np.testing.assert_allclose(found, theirs.preprocess_input(images.copy()), atol=1e-3)


def test_other_ends_of_a_classifier(photos):
    images = photos(4, SIZE).astype(np.float32)
    logits = foreign.standardise(teacher("0..255", activation=None), SIZE, "0..255")(images)["logits"]
    base = teacher("0..255", activation=None)
    behind = keras.Model(base.inputs, layers.Activation("softmax")(base.outputs[0]))
    stripped = foreign.standardise(behind, SIZE, "0..255")(images)["logits"]
    np.testing.assert_allclose(stripped, logits, rtol=1e-5, atol=1e-6)
    again = keras.Model(behind.inputs, layers.Reshape((3,))(behind.outputs[0]))  # a softmax that isn't at the end
    logarithms = foreign.standardise(again, SIZE, "0..255")(images)["logits"]
    np.testing.assert_allclose(keras.ops.softmax(logarithms), keras.ops.softmax(logits), rtol=1e-3, atol=1e-6)


def test_student_keeps_weights_and_ships_flat(photos, own):
    cfg = own(methods=("thumbnet",))
    mine = foreign.standardise(teacher("0..255"), SIZE, "0..255")
    student, anew = thumbnet.build_student(cfg, mine)
    assert anew == []
    for layer in mine.layers:
        for a, b in zip(layer.get_weights(), student.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert costs.macs(mine) > 3.2 * costs.macs(student)
    images = photos(2, SIZE).astype(np.float32)
    for rewritten in (fold(mine), plain(for_training(mine))):
        np.testing.assert_allclose(rewritten(images)["logits"], mine(images)["logits"], rtol=1e-4, atol=1e-4)
    small = thumbnet.build_downscaler(cfg, "learned")
    shipped = thumbnet.build_shipped(cfg, "learned", small, student)
    assert not any(isinstance(layer, keras.Model) for layer in shipped.layers)
    np.testing.assert_allclose(shipped(images)["logits"], student(small(images))["logits"], rtol=1e-4, atol=1e-4)


def test_heads_that_depend_on_the_size_start_anew(own, caplog):
    model = keras.Sequential([*trunk("0..255").layers, layers.Flatten(), layers.Dense(3, name="head")])
    mine = foreign.standardise(model, SIZE, "0..255", "pool1")
    student, anew = thumbnet.build_student(own(), mine)
    assert anew == ["head"]
    assert student.get_layer("head").kernel.shape[0] * 4 == mine.get_layer("head").kernel.shape[0]
    assert set(student.output) == {"logits", "pool1"}


def test_run_with_an_own_teacher(own, caplog):
    cfg = own(teacher("0..1"), teacher_input="0..1", methods=("direct", "thumbnet"))
    run = train(cfg)
    assert run.finished_methods() == ["original", "direct", "thumbnet"]
    log = (run.path / "log.txt").read_text()
    assert "% of 60 validation images right with --teacher_input=0..1" in log
    assert "FM's map is that of T's layer depthwise2" in log or "FM's map is that of T's layer conv3" in log
    labels = np.repeat([0, 1, 2], 20)
    assert (np.load(run.path / "original" / "logits_validation.npy").argmax(-1) == labels).mean() > 0.95
    assert benchmark_inference.of_run(run, "thumbnet").backbone == "own_teacher"
    teacher("-1..1").save(cfg.teacher)
    with pytest.raises(UserError, match="the teacher's file changed since this run started"):
        train(dataclasses.replace(cfg, methods=("direct", "bicubic")))


@pytest.mark.slow
def test_the_teacher_of_a_run_is_taken_as_its_file_is(own):
    run = train(own(teacher("0..1"), teacher_input="0..1"))
    theirs = run.path / "original" / "teacher.keras"  # holds what --teacher_input=0..1 has put in front
    elsewhere = shutil.copy(theirs, run.path.parent / "copy.keras")
    for name, path in (("second", theirs), ("third", elsewhere)):
        later = own(teacher=str(path), run_dir=str(run.path.parent / name))
        taken = np.load(train(later).path / "original" / "logits_validation.npy")
        np.testing.assert_array_equal(taken, np.load(run.path / "original" / "logits_validation.npy"))
    facts = run.data_facts()
    (run.path / "data.json").write_text(json.dumps(facts | {"classes": facts["classes"][::-1]}))
    with pytest.raises(UserError, match="--teacher must know this dataset's classes in this order"):
        train(own(teacher=str(theirs), run_dir=str(run.path.parent / "fourth")))


@pytest.mark.slow
def test_training_of_such_a_run_is_measured_with_its_teacher(own, tmp_path, monkeypatch):
    run = train(own(teacher("0..1"), teacher_input="0..1", fm_tap="relu1"))
    monkeypatch.setattr(benchmark_training, "_STEPS", 2)
    benchmark.main(benchmark.Options(what="training", run_dir=str(run.path), out=str(tmp_path), rounds=2))
    rows = read_rows(tmp_path / "benchmark_training.csv")
    cases = [name for name in benchmark_training.ABOUT if "bfloat16" not in name]
    assert [row["case"] for row in rows] == cases
    assert all(math.isfinite(float(row["median"])) for row in rows)


@pytest.mark.slow
def test_export_of_such_a_run(own, tmp_path, caplog):
    run = train(own(teacher("0..1"), teacher_input="0..1", methods=("bicubic",)))
    options = {"run_dir": str(run.path), "method": "bicubic", "out": str(tmp_path / "saved")}
    with pytest.raises(UserError, match="int8_qat, pruned and clustered need"):
        variants.possible(("float32", "pruned"), run.config(), "learned", run.load_model("bicubic", "shipped"))
    with caplog.at_level("INFO"):
        shipped = run.load_model("bicubic", "shipped")
        assert variants.possible(variants.VARIANTS, run.config(), "learned", shipped) == tflite.VARIANTS
    assert "left out: int8_qat, pruned and clustered need" in caplog.text
    folder, refused = export(Options(**options, variants=tflite.VARIANTS, fail_under=("int8:3",)))
    assert refused == []
    rows = {(row["artifact"], row["variant"]): row for row in read_rows(folder / "parity.csv")}
    assert {variant for _, variant in rows} >= set(tflite.VARIANTS)
    assert float(rows["thumbnet", "int8"]["agreement"]) > 0.95
    assert "reads it" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "values", "error", "message"),
    [
        (lambda: teacher("0..1"), {}, UserError, "--teacher_input=0..1 seems to be what T expects: with it T answers"),
        (
            lambda: teacher("0..255", order=(0, 2, 1)),
            {},
            UserError,
            "in another order than the dataset's: as red, blue, green it answers .* reorder T's outputs as blue, green",
        ),
        (lambda: teacher("0..255", order=(2, 1)), {}, UserError, "a score for each of the 3 classes .* which gives 2"),
        (lambda: teacher("0..255", activation="sigmoid"), {}, UserError, "an output behind a sigmoid"),
        (lambda: trunk("0..255"), {}, UserError, "one score for each of two or more classes"),
        (lambda: teacher("0..255"), {"image_size": 64}, FlagError, "--image_size must be the size of T's input, 32"),
        (
            lambda: teacher("0..255"),
            {"fm_tap": "stage9"},
            FlagError,
            "--fm_tap must name a layer of T that makes a map",
        ),
        (lambda: None, {}, UserError, "must be a .keras file that is there"),
        (lambda: None, {"teacher": "nowhere"}, UserError, "Received: nowhere, which holds no run"),
        (lambda: None, {"ratios": ("2", "4")}, UserError, "train takes one ratio; .* Received: ratios=2,4"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(own, model, values, error, message):
    cfg = own(model(), **values)
    with pytest.raises(UserError, match=message) as caught:
        train(cfg)
    assert type(caught.value) is error
    assert not (RunDir(cfg.run_dir).path / "data.json").exists()


def unsupported() -> dict[str, keras.Model]:
    """Returns a model of each kind that can't be T, by what the README calls it."""
    image = keras.Input((SIZE, SIZE, 3))
    base, dense = trunk("0..255"), layers.Dense(3)
    pooled = layers.GlobalAveragePooling2D()(base(image))

    class Subclassed(keras.Model):
        def call(self, x):
            return dense(layers.GlobalAveragePooling2D()(base(x)))

    quantized = keras.Model(image, layers.Dense(3)(pooled))
    quantized.layers[-1].quantize("int8")
    shared = layers.Conv2D(3, 3, padding="same")
    grey = keras.Input((SIZE, SIZE, 1))
    return {
        "2 inputs": keras.Model(
            [image, other := keras.Input((3,))], layers.Dense(3)(layers.Concatenate()([pooled, other]))
        ),
        "2 outputs": keras.Model(image, [layers.Dense(3)(pooled), layers.Dense(2)(pooled)]),
        "a subclassed model": Subclassed(),
        "the Lambda layer": keras.Model(image, layers.Dense(3)(layers.Lambda(lambda x: 2 * x, name="twice")(pooled))),
        "shares its weights": keras.Model(
            image, layers.Dense(3)(layers.GlobalAveragePooling2D()(shared(shared(image))))
        ),
        "of RandomCrop": keras.Model(image, layers.Dense(3)(layers.Flatten()(layers.RandomCrop(16, 16)(image)))),
        "an input of shape": keras.Model(grey, layers.Dense(3)(layers.Flatten()(grey))),
        "without any map": keras.Model(image, layers.Dense(3)(layers.Flatten()(image))),
        "one score for each": base,
        "behind a sigmoid": keras.Model(image, layers.Dense(3, activation="sigmoid")(pooled)),
        "in floating point": quantized,
    }


def test_each_unsupported_kind_is_one_line_that_says_so():
    text = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    table = text.split("<!-- unsupported -->")[1].split("<!-- end")[0]
    assert set(re.findall(r"\| `(.*)` \|", table)) == set(unsupported())
    for said, model in unsupported().items():
        with pytest.raises(UserError, match=said) as error:
            foreign.standardise(model, SIZE, "0..255")
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_interrupted_with_an_own_teacher_and_resumed_is_bit_equal(own, monkeypatch):
    values = {"methods": ("thumbnet",), "epochs": 2, "augment": "crop", "checkpoint_seconds": 0.0}
    model = teacher("0..255")
    whole = train(own(model, **values))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11, signal.SIGTERM)  # of 16 steps; T and S have a Dropout
        with pytest.raises(loop.Interrupted):
            train(own(**values, run_dir=f"{whole.path}_parts"))
    parts = train(own(**values, run_dir=f"{whole.path}_parts"))
    a, b = (run.load_model("thumbnet", "shipped").weights for run in (whole, parts))
    for ours, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    assert len(list(whole.path.parent.glob("teacher_cache/train-*"))) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": "keras.applications:MobileNetV9"}, "takes one of .*MobileNetV2.* Received: 'MobileNetV9'"),
        ({"teacher": "keras.applications:VGG16", "teacher_weights": "gone.h5"}, "--teacher_weights must be none"),
        ({"teacher": "keras.applications:InceptionV3"}, "can't be built for --image_size=32"),
    ],
)
def test_mistakes_about_keras_applications(own, values, message):
    with pytest.raises(UserError, match=message):
        train(own(**values))


def test_weights_that_can_not_be_downloaded_say_where_to_put_the_file(monkeypatch):
    def offline(*args, **kwargs):
        raise Exception("URL fetch failure on https://storage.googleapis.com/x/vgg16_weights_notop.h5: None -- offline")

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    with pytest.raises(
        UserError, match=r"put the file vgg16_weights_notop.h5 into ~/.keras/models/, or give --teacher_w"
    ):
        applications.build("VGG16", 32, 3, "caffe", "imagenet", "auto")


FAMILIES = {  # a small member of each, and the side of its input
    "MobileNet": 128,
    "MobileNetV2": 128,
    "MobileNetV3Small": 224,
    "EfficientNetB0": 128,
    "EfficientNetV2B0": 128,
    "ResNet50": 128,
    "ResNet50V2": 128,
    "DenseNet121": 224,
    "VGG16": 128,
    "Xception": 224,
    "InceptionV3": 320,
    "ConvNeXtTiny": 128,
    "NASNetMobile": 224,
}


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_keras_applications_train(name, ratio, photos):
    size = FAMILIES[name]
    cfg = Config(teacher=f"keras.applications:{name}", image_size=size, ratio=ratio, batch_size=2)
    mine = thumbnet.build_teacher(cfg, 5)
    trainer = build_trainer("thumbnet", cfg, 5, mine)
    assert costs.macs(mine) >= {2: 3.2, 4: 11}[ratio] * costs.macs(trainer.student)
    before = [np.array(weight) for weight in trainer.student.trainable_variables]
    trainer.compile(optimizer=build_optimizer(cfg, 1e-3, 10, trainer.trainable_variables))
    logs = trainer.train_on_batch(photos(2, size).astype(np.float32), np.array([0, 1]), return_dict=True)
    assert np.isfinite(logs["loss"])
    moved = [np.any(a != np.array(b)) for a, b in zip(before, trainer.student.trainable_variables, strict=True)]
    assert np.mean(moved) > 0.9
    if ratio == 2:  # what ships goes into TFLite: int8 is the hardest
        shipped = thumbnet.build_shipped(cfg, "learned", plain(trainer.downscaler), plain(trainer.student))
        assert len(tflite.convert(shipped, "thumbnet", "float32")) > 10_000
        if name == "ConvNeXtTiny":  # its layer normalisation has no integer kernel
            with pytest.raises(RuntimeError, match=r"only integer tensors are allowed. Received: .*layernorm"):
                tflite.convert(shipped, "thumbnet", "int8", calibration=photos(4, size))
        else:
            assert len(tflite.convert(shipped, "thumbnet", "int8", calibration=photos(4, size))) > 10_000
