"""How the learned downscaler's first convolution starts."""

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="thumbnet_tf")
class LostBand(keras.initializers.Initializer):
    """Fills a convolution's kernel with oriented band-pass (Gabor) filters for the detail that averaging loses.

    A thumbnail of ratio r carries frequencies up to 1 / (2 r) cycles a pixel; the filters' centres lie between that
    and the image's limit of 1/2, spread evenly over log frequency, orientation and phase by additive
    low-discrepancy sequences. Each filter is grey, has zero mean and unit norm.
    """

    def __init__(self, ratio: int) -> None:
        """Takes the ratio r, at least 2."""
        self.ratio = ratio

    def __call__(self, shape: tuple[int, ...], dtype=None, **kwargs) -> keras.KerasTensor:
        """Returns a kernel of shape (size, size, input channels, filters)."""
        size, _, channels, filters = shape
        y, x = np.mgrid[:size, :size] - (size - 1) / 2
        window = np.exp(-(x**2 + y**2) / (2 * (size / 4) ** 2))
        lowest = 1 / (2 * self.ratio)
        kernel = np.empty(shape)
        for index in range(filters):
            # fractions of the golden ratio and of the plastic number's powers fill their ranges evenly
            angle = np.pi * (index * 0.6180339887 % 1)
            frequency = lowest * (0.5 / lowest) ** (index * 0.7548776662 % 1)
            phase = 2 * np.pi * (index * 0.5698402910 % 1)
            wave = window * np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            wave -= window * wave.sum() / window.sum()
            kernel[..., index] = (wave / np.linalg.norm(wave))[..., None] / channels
        return keras.ops.convert_to_tensor(kernel, dtype or "float32")

    def get_config(self) -> dict:
        return {"ratio": self.ratio}
