"""Networks of `keras.applications` as a teacher T that is yet to be trained."""

import re
import sys

import keras
import numpy as np
from keras import layers

from thumbnet_tf import foreign, graph
from thumbnet_tf.config import APPLICATIONS, AUTO, FlagError, UserError

_KEPT_AS = {  # where Keras looks for another name than that of what it fetches
    "NASNet-mobile-no-top.h5": "nasnet_mobile_no_top.h5",
    "NASNet-large-no-top.h5": "nasnet_large_no_top.h5",
}


def build(
    name: str, size: int, num_classes: int, mode: str, weights: str, tap: str, *, synchronized: bool = False
) -> keras.Model:
    """Builds a network of `keras.applications`, with pooling and a new classifier of its own, as T.

    Args:
        name: of the constructor, such as MobileNetV2.
        size: side of the square input in pixels.
        num_classes: C.
        mode: one of `foreign.INPUTS`, or `auto` for what the network's own `preprocess_input` gives.
        weights: none, imagenet, or the path of a file for the trunk.
        tap, synchronized: as in `foreign.standardise`.

    Raises:
        FlagError: on an unknown name.
        UserError: when the weights can't be had, or the input is too small.
    """
    constructor = getattr(keras.applications, name, None)
    if not name[:1].isupper() or not callable(constructor):
        known = [key for key in dir(keras.applications) if key[0].isupper()]
        raise FlagError(f"--teacher={APPLICATIONS}NAME takes one of {', '.join(known)}. Received: {name!r}")
    settings = {"include_top": False, "input_shape": (size, size, 3)}
    with graph.precision("float32"):
        try:
            trunk = constructor(weights="imagenet" if weights == "imagenet" else None, **settings)
        except Exception as error:  # Keras raises many kinds; the address of what it fetches is in the message
            text = " ".join(str(error).split())
            address = re.search(r"https?://\S*/([\w.\-]+)", text)
            if address:
                file = _KEPT_AS.get(address[1], address[1])
                raise UserError(
                    f"the weights of {name} can't be downloaded; put the file {file} into ~/.keras/models/, or "
                    f"give --teacher_weights=FILE. Received: {text[:160]}"
                ) from None
            raise UserError(f"{name} can't be built for --image_size={size}. Received: {text[:200]}") from None
        if weights not in ("none", "imagenet"):
            try:
                trunk.load_weights(weights)
            except Exception as error:
                reason = " ".join(str(error).split())[:160]
                raise UserError(
                    f"--teacher_weights must be none, imagenet, or a weights file (.weights.h5, .h5) of {name} without "
                    f"its top. Received: {weights} ({reason})"
                ) from None
        x = layers.GlobalAveragePooling2D(name="pool")(trunk.output)
        whole = keras.Model(trunk.input, layers.Dense(num_classes, name="classifier")(x))
    mode = _own_input(constructor) if mode == AUTO else mode
    return foreign.standardise(whole, size, mode, tap, synchronized=synchronized)


def _own_input(constructor: object) -> str:
    """Returns which of `foreign.INPUTS` a network's own `preprocess_input` makes, found out on a few colours."""
    colours = np.float32([[[[0, 128, 255], [255, 0, 60], [10, 200, 90]]]])
    wanted = sys.modules[constructor.__module__].preprocess_input(colours.copy())
    image = keras.Input((1, 3, 3))
    for mode in foreign.INPUTS:
        if np.allclose(keras.Model(image, foreign.preprocess(image, mode))(colours), wanted, atol=0.05):
            return mode
    raise UserError(
        f"--teacher_input must be given for this network, one of {', '.join(foreign.INPUTS)}. Received: auto"
    )
