"""A kernel's positions that meet nothing but padding can go: outputs and gradients of the others stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import costs, thumbnet
from thumbnet_tf.config import Config
from thumbnet_tf.trimming import positions, trim


def test_positions_by_hand():
    # one input, one output: a kernel of 3 is padded by one on both sides, and its middle meets the input
    assert positions(1, 3, 1, same=True) == [None, (slice(0, 1), slice(0, 1, 1)), None]
    # two inputs in steps of 2: TensorFlow pads behind, so the first two positions meet one input each
    assert positions(2, 3, 2, same=True) == [(slice(0, 1), slice(0, 1, 2)), (slice(0, 1), slice(1, 2, 2)), None]
    # without padding, the positions 0 and 1 of a kernel of 2 meet the inputs 0, 2 and 1, 3
    assert positions(5, 2, 2, same=False) == [(slice(0, 2), slice(0, 3, 2)), (slice(0, 2), slice(1, 4, 2))]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "groups", "left"),
    [
        ((1, 1), 3, 1, 1, (1, 1)),
        ((2, 2), 3, 2, 1, (2, 2)),
        ((1, 4), 3, 1, 1, (1, 3)),
        ((2, 1), (5, 7), (1, 2), 1, (3, 1)),
        ((1, 1), 3, 1, 2, (1, 1)),
        ((2, 2), 3, 1, 1, (3, 3)),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_the_function_stays(size, kernel, stride, groups, left, batch):
    keras.utils.set_random_seed(2)
    image = keras.Input((*size, 6))
    conv = keras.layers.Conv2D(4, kernel, stride, padding="same", groups=groups, activation="tanh", name="conv")
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(conv(image)))
    conv.bias.assign([0.1, -0.2, 0.3, 0.4])
    trimmed = trim(model)
    assert trimmed.get_layer("conv").kernel.shape == (*left, 6 // groups, 4)
    maps = np.random.default_rng(0).normal(size=(batch, *size, 6)).astype(np.float32)
    np.testing.assert_allclose(trimmed(maps), model(maps), rtol=1e-5, atol=1e-6)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(maps)))
    gradient = tape.gradient(loss, conv.kernel.value).numpy()
    # what went had no gradient
    assert np.count_nonzero(gradient) == np.prod(trimmed.get_layer("conv").kernel.shape)


def test_what_cannot_be_told_or_is_needed_stays():
    image = keras.Input((2, 2, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    x = keras.layers.Conv2D(4, 3, dilation_rate=2, padding="same")(x)
    whole = keras.Model(image, keras.layers.Conv2D(4, 2)(x))
    assert trim(whole) is whole
    image = keras.Input((None, None, 3))
    anysize = keras.Model(image, keras.layers.Conv2D(4, 3, padding="same")(image))
    assert trim(anysize) is anysize


def test_a_student_of_teachers_weights_has_none_of_padding(photos):
    cfg = Config(image_size=128, ratio=4, width=0.0625)
    teacher = thumbnet.build_teacher(cfg, 3)
    student, anew = thumbnet.build_student(cfg, teacher)
    assert anew == []
    # ResNet-18 at 32 px: the last stage goes from 2 x 2 to 1 x 1; 16 to 32 channels there
    kernels = {
        layer.name: layer.kernel
        for layer in student.layers
        if layer.name.startswith("stage4") and layer.weights
        if isinstance(layer, keras.layers.Conv2D)
    }
    assert {name: tuple(kernel.shape) for name, kernel in kernels.items()} == {
        "stage4_block1_1_conv": (2, 2, 16, 32),
        "stage4_block1_shortcut_conv": (1, 1, 16, 32),
        **dict.fromkeys(("stage4_block1_2_conv", "stage4_block2_1_conv", "stage4_block2_2_conv"), (1, 1, 32, 32)),
    }
    # of 3 x 3 each: 5 positions of the first are gone and 8 of each of the other three
    gone = 5 * 16 * 32 + 3 * 8 * 32 * 32
    assert costs.parameters(teacher) - costs.parameters(student) == gone
    source = teacher.get_layer("stage4_block2_1_conv").kernel
    np.testing.assert_array_equal(kernels["stage4_block2_1_conv"][0, 0], source[1, 1])
