"""The classifiers that T and S are built from: ResNet-18/34/50 and VGG-11 with batch normalisation.

Each is a flat functional model of named plain layers whose output is a dict: `logits` and one tap per stage.
Input: RGB `(B, size, size, 3)` in [0, 255]; `(p - 128) / 128` is computed inside.

Sources: He et al. 2016 (https://arxiv.org/abs/1512.03385), with the stride on the 3 x 3 convolution of a bottleneck;
Simonyan & Zisserman 2015 (https://arxiv.org/abs/1409.1556), batch normalisation behind each convolution and no dropout.
"""

import keras
from keras import layers

from thumbnet_tf.config import UserError

BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}
STEM_STRIDE = 4  # of a ResNet as published: its convolution and its pooling

# name -> (blocks of each stage, bottleneck)
RESNETS = {"resnet18": ((2, 2, 2, 2), False), "resnet34": ((3, 4, 6, 3), False), "resnet50": ((3, 4, 6, 3), True)}
# name -> channels of the convolutions of each stage; a stage ends with 2 x 2 pooling
VGGS = {"vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512))}
NAMES = (*RESNETS, *VGGS)


def build(
    name: str,
    size: int,
    num_classes: int,
    width: float = 1.0,
    *,
    stem_stride: int = STEM_STRIDE,
    synchronized: bool = False,
) -> keras.Model:
    """Builds a backbone with random weights.

    Args:
        name: one of `RESNETS` or `VGGS`.
        size: side of the square input in pixels.
        num_classes: C.
        width: multiplier of all channel counts.
        stem_stride: how many times smaller than the image's the sides of a ResNet's first stage are: 4 = as published;
            2 = the first convolution is 3 x 3 of stride 1; 1 = that one, and no pooling behind it.
        synchronized: whether batch statistics are taken over all replicas.

    Returns:
        A model from images `(B, size, size, 3)` in [0, 255] to `{"stage1": (B, h, w, c), ..., "logits": (B, C)}`.

    Raises:
        UserError: on an unknown name, an input too small for the network, or a stem that it doesn't have.
    """
    if name not in NAMES:
        raise UserError(f"--backbone must be one of {', '.join(NAMES)}. Received: {name!r}")
    if name not in RESNETS and stem_stride != STEM_STRIDE:
        raise UserError(f"{name} has no strided stem: --student_stem_stride must be 4. Received: {stem_stride}")
    image = keras.Input((size, size, 3), name="image")
    net = _Layers(width, synchronized)
    # float32 even under mixed precision: bfloat16 can't tell neighbouring pixel values apart once they are scaled
    x = layers.Rescaling(1 / 128, offset=-1.0, dtype="float32", name="rescaling")(image)
    if name in RESNETS:
        taps, x = _resnet(net, x, *RESNETS[name], stem_stride)
    else:
        taps, x = _vgg(net, x, VGGS[name])
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(image, taps | {"logits": logits}, name=name)


class _Layers:
    """The layers that all backbones repeat, with their settings."""

    def __init__(self, width: float, synchronized: bool) -> None:
        self.width, self.synchronized = width, synchronized

    def channels(self, full: int) -> int:
        return max(1, round(full * self.width))

    def conv_bn(
        self,
        x: keras.KerasTensor,
        filters: int,
        kernel: int,
        name: str,
        stride: int = 1,
        relu: bool = True,
        gamma: str = "ones",
    ) -> keras.KerasTensor:
        x = layers.Conv2D(
            filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
        )(x)
        x = layers.BatchNormalization(
            gamma_initializer=gamma, synchronized=self.synchronized, name=f"{name}_bn", **BATCH_NORM
        )(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _resnet(
    net: _Layers, x: keras.KerasTensor, blocks: tuple[int, ...], bottleneck: bool, stem_stride: int
) -> tuple[dict, keras.KerasTensor]:
    kernel, stride = (7, 2) if stem_stride == STEM_STRIDE else (3, 1)
    x = net.conv_bn(x, net.channels(64), kernel, "stem", stride=stride)
    if stem_stride > 1:
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    taps = {}
    for stage, count in enumerate(blocks, 1):
        filters = net.channels(64 * 2 ** (stage - 1))
        for block in range(1, count + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _residual_block(net, x, filters, stride, bottleneck, f"stage{stage}_block{block}")
        taps[f"stage{stage}"] = x
    return taps, layers.GlobalAveragePooling2D(name="pool")(x)


def _residual_block(
    net: _Layers, x: keras.KerasTensor, filters: int, stride: int, bottleneck: bool, name: str
) -> keras.KerasTensor:
    out = filters * 4 if bottleneck else filters
    shortcut = x
    if stride > 1 or x.shape[-1] != out:
        shortcut = net.conv_bn(x, out, 1, f"{name}_shortcut", stride, relu=False)
    # the last batch normalisation starts at 0, so that a block starts as its shortcut (Goyal et al. 2017)
    if bottleneck:
        y = net.conv_bn(x, filters, 1, f"{name}_1")
        y = net.conv_bn(y, filters, 3, f"{name}_2", stride)
        y = net.conv_bn(y, out, 1, f"{name}_3", relu=False, gamma="zeros")
    else:
        y = net.conv_bn(x, filters, 3, f"{name}_1", stride)
        y = net.conv_bn(y, filters, 3, f"{name}_2", relu=False, gamma="zeros")
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([shortcut, y]))


def _vgg(net: _Layers, x: keras.KerasTensor, stages: tuple[tuple[int, ...], ...]) -> tuple[dict, keras.KerasTensor]:
    taps = {}
    for stage, convs in enumerate(stages, 1):
        for index, filters in enumerate(convs, 1):
            x = net.conv_bn(x, net.channels(filters), 3, f"stage{stage}_{index}")
        if min(x.shape[1:3]) < 2:
            raise UserError(
                "VGG-11 needs a thumbnail of at least 32 pixels; raise --image_size or lower --ratio. "
                f"Received: a map of {x.shape[1]} x {x.shape[2]} at stage {stage}"
            )
        x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
        taps[f"stage{stage}"] = x
    x = layers.Flatten(name="flatten")(x)
    for index in (1, 2):
        x = layers.Dense(net.channels(4096), activation="relu", kernel_initializer="he_normal", name=f"dense{index}")(x)
    return taps, x
