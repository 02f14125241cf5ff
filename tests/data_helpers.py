"""Pictures, files and a small TFDS dataset for the tests of the data modules."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from thumbnet_tf.config import Config
from thumbnet_tf.data import sources

SPLITS = ("train", "validation", "test")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns a smooth, colourful picture with a little noise, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    """Returns the bytes of an image file written by Pillow."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int | None) -> Image.Exif:
    """Returns EXIF data with an orientation: 1 is upright, 6 to be turned by 90 degrees; None for without."""
    found = Image.Exif()
    if orientation is not None:
        found[0x0112] = orientation
    return found


def by_pillow(data: bytes) -> np.ndarray:
    """Decodes with Pillow, int (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def load(dataset, splits=SPLITS, **options):
    return sources.load(Config(dataset=str(dataset), **options), splits)


def pixels(split):
    return [split.store.get(tf.constant(i)).numpy() for i in range(split.num_examples)]


def write_pngs(folder: Path, images: Iterable[np.ndarray]) -> None:
    """Writes images as 0.png, 1.png and so on to a new folder."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        (folder / f"{i}.png").write_bytes(encode(image, "PNG"))


def write_folder(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Writes `counts[class]` PNG files of different sizes to each class folder, such as `train/cat`."""
    for name, count in counts.items():
        seeds = range(seed + 1, seed + 1 + count)
        write_pngs(root / name, (picture(24 + each % 5, 28 - each % 3, each) for each in seeds))
        seed += count
    return root


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """24 images a split, of different sizes; the configuration says which splits there are."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS' own convention
        tfds.core.BuilderConfig(name=name, description="rendered")
        for name in (
            *("train", "train_validation", "train_validation_test", "test", "unsupervised", "unlabelled"),
            "train_validation_test_hidden",  # as a competition's: without the labels of test
        )
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=["ant", "bee", "cow"])
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label}),
            supervised_keys=None if self.builder_config.name == "unsupervised" else ("image", "label"),
        )

    def _split_generators(self, dl_manager):
        name = self.builder_config.name
        splits = ["train"] if name.startswith("un") else name.removesuffix("_hidden").split("_")
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split):
        for i in range(24):
            name = self.builder_config.name
            label = -1 if name == "unlabelled" or (name.endswith("hidden") and split == "test") else i % 3
            image = encode(picture(24 + i % 4, 30 - i % 3, 100 * len(split) + i), "PNG")
            yield f"{split}{i}", {"image": io.BytesIO(image), "label": label}
