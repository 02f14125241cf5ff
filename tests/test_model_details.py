"""What E, the decoder and the shipped model are built of."""

import numpy as np
import pytest
from keras import layers

from thumbnet_tf import downscaler, thumbnet
from thumbnet_tf.config import Config


def test_options_reach_e_and_what_is_shipped():
    cfg = Config(
        image_size=64,
        width=0.0625,
        downscaler_width=5,
        downscaler_residual=0.0,
        downscaler_filters="random",
        thumbnail_bits=3,
    )
    learned = thumbnet.build_downscaler(cfg, "learned")
    first = learned.get_layer("downscaler_1_conv").kernel.numpy()
    assert first.shape[-1] == 5 and np.abs(first.sum((0, 1, 2))).max() > 0.1  # not of the lost band
    assert not learned.get_layer("downscaler_residual").kernel.numpy().any()
    student, _ = thumbnet.build_student(cfg, thumbnet.build_teacher(cfg, 3))
    shipped = thumbnet.build_shipped(cfg, "learned", learned, student)
    assert learned.get_layer("thumbnail").bits == shipped.get_layer("thumbnail").bits == 3
    parts = thumbnet.deployed(shipped, shipped)
    assert any(layer.name == "thumbnail" for layer in parts.student.layers)  # of 3 bits, bytes are no levels


def test_layers_of_e():
    learned = thumbnet.build_downscaler(Config(image_size=64, ratio=2), "learned")
    kernels = {layer.name: tuple(layer.kernel.shape) for layer in learned.layers if isinstance(layer, layers.Conv2D)}
    assert kernels == {
        "downscaler_1_conv": (5, 5, 3, 16),
        "downscaler_2_conv": (3, 3, 16, 16),
        "downscaler_residual": (1, 1, 16, 3),
    }
    for index in (1, 2):
        norm, relu = learned.get_layer(f"downscaler_{index}_bn"), learned.get_layer(f"downscaler_{index}_relu")
        assert norm.momentum == 0.9 and isinstance(relu, layers.ReLU)


def test_the_residual_starts_at_its_scale():
    found = downscaler.build("learned", 64, 2, width=64, residual=0.4).get_layer("downscaler_residual")
    assert np.std(found.kernel.numpy()) == pytest.approx(0.4 / 8, rel=0.25)  # of 192 values


def test_layers_of_the_decoder():
    cfg = Config(width=0.0625)
    teacher = thumbnet.build_teacher(cfg, 3)
    decoder = thumbnet.build_decoder(thumbnet.build_student(cfg, teacher)[0], teacher, "stage1")
    # 4 channels: a quarter of them behind 3 x 3, then 4 x 4 times 4
    assert decoder.get_layer("decoder_1_conv").kernel.shape == (3, 3, 4, 1)
    assert isinstance(decoder.get_layer("decoder_1_relu"), layers.ReLU)


def test_thumbnails_that_are_not_rounded_are_clipped_all_the_same():
    np.testing.assert_array_equal(downscaler.ToThumbnail(0)(np.float32([-20, 0.4, 300])), np.float32([0, 0.4, 255]))
