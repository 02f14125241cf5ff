"""What a model costs: multiply-adds for one image, parameters."""

import math

import keras
from keras import layers

_COUNTED = (
    layers.Conv2D,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
    layers.Conv2DTranspose,
    layers.Dense,
    layers.EinsumDense,
)


def macs(model: keras.Model) -> int:
    """Counts the multiply-adds of all convolutions and dense layers for one image.

    Args:
        model: a flat functional model with fixed spatial sizes.

    Returns:
        Multiply-adds; pooling, normalisation, additions and resizing are not counted, as is usual.
    """
    return sum(_layer_macs(layer) for layer in model.layers)


def uncounted(model: keras.Model) -> list[str]:
    """Returns the names of the layers whose products with kernels `macs` leaves out, such as attention."""
    return [
        layer.name
        for layer in model.layers
        if not isinstance(layer, (*_COUNTED, layers.PReLU))
        and any(len(weight.shape) > 1 for weight in layer.trainable_weights)
    ]


def _layer_macs(layer: keras.Layer) -> int:
    if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
        # a kernel is (height, width, channels of one group, filters): all of it is used once per output position
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
    if isinstance(layer, layers.SeparableConv2D):
        positions = math.prod(layer.output.shape[1:3])
        return positions * (math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape))
    if isinstance(layer, layers.Conv2DTranspose):  # a kernel is used once per input position
        return math.prod(layer.kernel.shape) * math.prod(layer.input.shape[1:3])
    if isinstance(layer, layers.Dense):
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
    if isinstance(layer, layers.EinsumDense):  # an output sums over those axes of the kernel that it doesn't have
        inputs, output = layer.equation.split("->")
        sizes = zip(inputs.split(",")[1], layer.kernel.shape, strict=True)
        return math.prod(layer.output.shape[1:]) * math.prod(size for axis, size in sizes if axis not in output)
    return 0


def parameters(model: keras.Model) -> int:
    """Returns the number of trainable parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)
