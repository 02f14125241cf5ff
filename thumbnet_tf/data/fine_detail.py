"""FineDetail: a rendered TFDS classification set whose classes only differ in texture of a few pixels' period.

Each image shows one softly lit shape on a natural-looking background. The shape's surface carries a zero-mean texture,
and only the texture's orientation and kind tell the class; its period is too short for a thumbnail of a quarter of the
side to carry it. Whoever shrinks these images by averaging loses the label; a learned downscaler can keep it.
Nothing is downloaded: NumPy draws every image from a seed made of the configuration, the split and the index.
"""

import dataclasses
import functools
import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZE = 96
SPLIT_SIZES = {"train": 4000, "validation": 500, "test": 1000}

# Ranges are chosen so that no pixel of a textured shape reaches 0 or 255: clipping would let the texture's peaks, and
# with them the class, move the mean.
_COLOUR_RANGE = (92.0, 164.0)
_BACKGROUND_RANGE = (16.0, 239.0)
_BACKGROUND_RMS = 30.0
_BACKGROUND_SLOPE = 1.4  # amplitude falls as 1 / frequency**slope; photographs have 1 to 1.5
_MOTTLE_RMS = 6.0
_LIGHT_RANGE = (4.0, 12.0)

Angles = tuple[float, ...]


def _degrees(angle: float) -> str:
    """Returns an angle as part of a class name, such as `22p5deg`."""
    return f"{angle:g}deg".replace(".", "p")


def _stripes(*angles: float) -> dict[str, Angles]:
    """Returns classes of one wave each; stripes run along the angle, counted anticlockwise from horizontal."""
    return {f"stripes_{_degrees(angle)}": (angle,) for angle in angles}


def _checks(*angles: float) -> dict[str, Angles]:
    """Returns classes of two crossing waves each; rows run along the angle and across it."""
    return {f"checks_{_degrees(angle)}": (angle, angle + 90.0) for angle in angles}


@dataclasses.dataclass(eq=False, kw_only=True)
class FineDetailConfig(tfds.core.BuilderConfig):
    """One variant of the set.

    Attributes:
        seed: first word of every image's random seed.
        patterns: class name -> angles in degrees along which the texture's waves run, in label order.
        periods: shortest and longest wave length, pixels.
        contrast: rms of the texture inside the shape, grey levels; the same for every class.
        angle_jitter: largest deviation from the class's angle, degrees.
        noise: standard deviation of the sensor noise, grey levels.
    """

    seed: int
    patterns: dict[str, Angles]
    periods: tuple[float, float]
    contrast: float
    angle_jitter: float
    noise: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(self.patterns)


def render(config: FineDetailConfig, split: str, index: int) -> tuple[np.ndarray, int]:
    """Draws one image. Equal arguments give equal pixels.

    Args:
        config: variant of the set.
        split: a key of `SPLIT_SIZES`.
        index: number of the image in its split, from 0; labels go round the classes.

    Returns:
        The image, (96, 96, 3) uint8 RGB, and its label in [0, number of classes).
    """
    rng = np.random.default_rng([config.seed, list(SPLIT_SIZES).index(split), index])
    label = index % len(config.patterns)
    # The class enters in `_texture` only, and there it changes no number of random draws, so that everything else in
    # the picture is independent of it.
    red, green, blue, mottle = _pink_noise(rng, 4)
    background = rng.uniform(*_COLOUR_RANGE, 3) + _BACKGROUND_RMS * _correlated(np.stack([red, green, blue], axis=-1))
    mask = _shape_mask(rng)
    surface = rng.uniform(*_COLOUR_RANGE, 3) + (_MOTTLE_RMS * mottle)[..., None]
    texture = _texture(rng, config, tuple(config.patterns.values())[label], mask)
    light = _light(rng)[..., None]
    scene = np.clip(background + light, *_BACKGROUND_RANGE) * (1.0 - mask) + (surface + light + texture) * mask
    scene += config.noise * rng.standard_normal(scene.shape)
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8), label


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Returns x (rightwards) and y (downwards) of the pixel centres from the image's middle, each (96, 96) float64."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    return x, y


@functools.cache
def _pink_filter() -> np.ndarray:
    """Returns the background's amplitude on `rfft2`'s grid, without the mean, (96, 49) float64."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None, :])
    frequency[0, 0] = np.inf
    return frequency**-_BACKGROUND_SLOPE


def _pink_noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns independent fields with the spectrum of natural images, mean 0, rms 1: (count, 96, 96) float64."""
    fields = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((count, SIZE, SIZE))) * _pink_filter(), s=(SIZE, SIZE))
    return fields / fields.std(axis=(1, 2), keepdims=True)


def _correlated(fields: np.ndarray) -> np.ndarray:
    """Mixes independent channels so that brightness varies more than colour, as in photographs: (96, 96, 3) float64."""
    return 0.25 * fields + 0.5 * fields.sum(axis=-1, keepdims=True)


def _shape_mask(rng: np.random.Generator) -> np.ndarray:
    """Draws an ellipse, a blob or a polygon at a random place, size and rotation.

    Returns:
        Coverage of each pixel in [0, 1] with a soft edge about two pixels wide, (96, 96, 1) float64.
    """
    x, y = _grid()
    radius, stretch, rotation = rng.uniform(26.0, 38.0), rng.uniform(0.8, 1.25), rng.uniform(0.0, 2 * np.pi)
    x, y = x - rng.uniform(-12.0, 12.0), y - rng.uniform(-12.0, 12.0)
    along = (x * np.cos(rotation) + y * np.sin(rotation)) * stretch
    across = (y * np.cos(rotation) - x * np.sin(rotation)) / stretch
    distance, angle = np.hypot(along, across), np.arctan2(across, along)
    kind = rng.choice(["ellipse", "blob", "polygon"])
    if kind == "blob":
        orders = np.arange(2, 5)
        waves = np.cos(angle[..., None] * orders + rng.uniform(0.0, 2 * np.pi, 3)) / orders
        radius = radius * (1.0 + waves @ rng.uniform(0.0, 0.35, 3))
    elif kind == "polygon":
        sector = 2 * np.pi / rng.integers(4, 8)
        radius = 1.1 * radius * np.cos(sector / 2) / np.cos(angle % sector - sector / 2)
    return np.clip((radius - distance) / 2.0 + 0.5, 0.0, 1.0)[..., None]


def _light(rng: np.random.Generator) -> np.ndarray:
    """Returns a linear gradient of the illumination in a random direction, grey levels, (96, 96) float64."""
    x, y = _grid()
    direction, strength = rng.uniform(0.0, 2 * np.pi), rng.uniform(*_LIGHT_RANGE)
    return strength * (x * np.cos(direction) + y * np.sin(direction)) / (SIZE / 2)


def _texture(rng: np.random.Generator, config: FineDetailConfig, angles: Angles, mask: np.ndarray) -> np.ndarray:
    """Draws a class's texture with random period, phases and a slight rotation.

    Args:
        rng: source of the nuisances.
        config: variant of the set.
        angles: angles of the class's waves, degrees.
        mask: coverage of the shape, (96, 96, 1) in [0, 1].

    Returns:
        Grey levels to add, (96, 96, 1) float64, whose mean over the shape is 0 and whose rms is `config.contrast`
        exactly, for every class.
    """
    x, y = _grid()
    period = rng.uniform(*config.periods)
    turn = np.deg2rad(rng.uniform(-config.angle_jitter, config.angle_jitter))
    phases = rng.uniform(0.0, 2 * np.pi, 2)
    waves = np.zeros((SIZE, SIZE))
    for angle, phase in zip(np.deg2rad(angles) + turn, phases, strict=False):
        waves += np.cos(2 * np.pi / period * (x * np.sin(angle) + y * np.cos(angle)) + phase)
    waves, weight = waves[..., None], mask / mask.sum()
    waves = waves - (weight * waves).sum()
    return config.contrast * waves / np.sqrt((weight * waves**2).sum())


class FineDetail(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `fine_detail/default` and `fine_detail/hard`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[FineDetailConfig]] = [
        FineDetailConfig(
            name="default",
            description="Stripes at four angles and checks at two, 3 to 4 pixels, strong contrast.",
            seed=1,
            patterns=_stripes(0, 45, 90, 135) | _checks(0, 45),
            periods=(3.0, 4.0),
            contrast=18.0,
            angle_jitter=4.0,
            noise=3.0,
        ),
        FineDetailConfig(
            name="hard",
            description="Stripes at eight angles 22.5 degrees apart, 2.4 to 3.6 pixels, weak contrast.",
            seed=2,
            patterns=_stripes(*np.arange(0, 180, 22.5)),
            periods=(2.4, 3.6),
            contrast=6.0,
            angle_jitter=4.0,
            noise=3.0,
        ),
    ]

    split_sizes: ClassVar[dict[str, int]] = SPLIT_SIZES

    def _info(self) -> tfds.core.DatasetInfo:
        """Describes features and classes."""
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=self.builder_config.class_names),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        """Returns the examples of every split; nothing is downloaded."""
        del dl_manager
        return {split: self._generate_examples(split, count) for split, count in self.split_sizes.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields a split's images with their index as key."""
        for index in range(count):
            image, label = render(self.builder_config, split, index)
            yield index, {"image": _png(image), "label": label}


def _png(image: np.ndarray) -> io.BytesIO:
    """Encodes an image; noise hardly compresses, so the fastest level costs little space."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    buffer.seek(0)
    return buffer
