"""What multiply-adds count, and what they leave out."""

import keras
import pytest
from keras import layers

from thumbnet_tf import backbones, costs


@pytest.mark.parametrize(
    ("equation", "shape", "expected"),
    [
        ("abc,cd->abd", (5, 7), 5 * 3 * 7),
        ("abc,cde->abde", (5, 7, 2), 5 * 3 * 7 * 2),  # as of attention's heads
        ("abc,bcd->ad", (7,), 5 * 3 * 7),
        ("abc,bcd->abd", (5, 7), 5 * 3 * 7),
        ("...c,cd->...d", (7,), 5 * 3 * 7),
    ],
)
def test_products_over_any_axes_are_counted(equation, shape, expected):
    tokens = keras.Input((5, 3))
    model = keras.Model(tokens, layers.EinsumDense(equation, shape)(tokens))
    assert costs.macs(model) == expected


def test_what_multiply_adds_leave_out_is_named():
    image = keras.Input((16, 16, 3))
    x = layers.SpectralNormalization(layers.Conv2D(4, 3), name="bounded")(image)
    x = layers.Reshape((-1, 4))(layers.PReLU()(layers.BatchNormalization()(x)))
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    assert costs.uncounted(model) == ["bounded", "attention"]
    assert costs.uncounted(backbones.build("vgg11", 32, 3, 0.25)) == []
