"""S of another width or stem than T's: its maps, costs and weights, and the networks that have no such variants."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from thumbnet_tf import backbones, costs, foreign, thumbnet
from thumbnet_tf.config import Config, UserError


@pytest.mark.parametrize(
    ("stride", "sides", "kernel"), [(4, [8, 4, 2, 1], 7), (2, [16, 8, 4, 2], 3), (1, [32, 16, 8, 4], 3)]
)
def test_student_of_another_stem_and_width(stride, sides, kernel, photos):
    cfg = Config(image_size=128, width=0.25, student_width=0.125, student_stem_stride=stride)
    teacher = thumbnet.build_teacher(cfg, 5)
    student, anew = thumbnet.build_student(cfg, teacher)
    assert [student.output[f"stage{i}"].shape[1:] for i in (1, 2, 3, 4)] == [
        (side, side, channels) for side, channels in zip(sides, (8, 16, 32, 64), strict=True)
    ]
    assert student.get_layer("stem_conv").kernel.shape == (kernel, kernel, 3, 8)
    assert len(anew) == len([layer for layer in student.layers if layer.weights])  # no shape is T's
    logits = student(photos(3, 32))["logits"].numpy()
    assert logits.shape == (3, 5)
    np.testing.assert_allclose(student(photos(3, 32)[:1])["logits"][0], logits[0], rtol=1e-4, atol=1e-5)
    decoder = thumbnet.build_decoder(student, teacher, "stage2")
    assert decoder.output.shape[1:] == teacher.output["stage2"].shape[1:] == (16, 16, 32)


def test_half_the_width_pays_for_half_the_stems_stride():
    cfg = Config(image_size=128, width=0.5)
    teacher = thumbnet.build_teacher(cfg, 5)
    wide, _ = thumbnet.build_student(cfg, teacher)
    narrow, _ = thumbnet.build_student(dataclasses.replace(cfg, student_width=0.25, student_stem_stride=2), teacher)
    assert 0.85 < costs.macs(narrow) / costs.macs(backbones.build("resnet18", 32, 5, 0.5)) < 1
    assert 1 < costs.macs(narrow) / costs.macs(wide) < 1.15  # the wide S has no weights that meet padding only
    assert costs.parameters(narrow) < costs.parameters(teacher) / 3.9


def test_student_of_another_stem_starts_from_the_teacher_elsewhere():
    cfg = Config(image_size=64, width=0.125, student_stem_stride=2)
    teacher = thumbnet.build_teacher(cfg, 5)
    for layer in teacher.layers:
        layer.set_weights([value + 0.25 for value in layer.get_weights()])
    student, anew = thumbnet.build_student(cfg, teacher)
    assert anew == ["stem_conv"]
    for name in ("stem_bn", "stage1_block1_1_conv", "logits"):
        for mine, theirs in zip(
            student.get_layer(name).get_weights(), teacher.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_the_width_of_the_teacher_is_no_variant():
    cfg = Config(image_size=64, width=0.125, student_width=0.125)
    assert not cfg.varies_student
    assert thumbnet.build_student(cfg, thumbnet.build_teacher(cfg, 5))[1] == []


def test_decoder_of_a_map_finer_than_the_teachers(photos):
    cfg = Config(image_size=64, ratio=2, width=0.125, student_stem_stride=1)
    teacher = thumbnet.build_teacher(cfg, 5)
    student, _ = thumbnet.build_student(cfg, teacher)
    decoded = thumbnet.build_decoder(student, teacher, "stage2")(student(photos(2, 32))["stage2"])
    assert student.output["stage2"].shape[1] == 2 * teacher.output["stage2"].shape[1] == 16
    assert decoded.shape == (2, 8, 8, 16)
    assert np.isfinite(decoded).all() and np.std(decoded) > 0


def test_networks_without_variants_are_told():
    cfg = Config(backbone="vgg11", image_size=128, width=0.0625, student_stem_stride=2, methods=("thumbnet",))
    with pytest.raises(UserError, match="vgg11 has no strided stem: --student_stem_stride must be 4. Received: 2"):
        thumbnet.check(cfg)
    image = keras.Input((64, 64, 3))
    mine = foreign.standardise(
        keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)))),
        64,
        "0..255",
    )
    with pytest.raises(UserError, match="go with a T of --backbone only.*Received: 0.5 and 4 with another T"):
        thumbnet.build_student(Config(image_size=64, student_width=0.5), mine)
