"""Trains a classifier as anybody would in Keras, the teacher of `own_teacher.flags`; knows nothing of thumbnet_tf.

  python experiments/own_teacher.py --data=../shared/data/tf_flowers --out=runs/own_teacher.keras
  python -m thumbnet_tf.train --flagfile=experiments/own_teacher.flags

MobileNetV2 of width 0.35, from random weights, with its own augmentation and scaling inside the file. The photographs
are split first, by links in `--photos`, so that T doesn't know those that a thumbnail network is later validated on.
"""

import argparse
import os
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf
from keras import layers

SUFFIXES = (".jpg", ".jpeg", ".png")


def photographs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns a class' photographs, sorted."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def split(data: pathlib.Path, photos: pathlib.Path) -> None:
    """Links the photographs in `data/{train,test}/<class>` into `photos/{train,validation,test}/<class>`.

    Every tenth of a class' photographs for training becomes one for validation.

    Raises:
        ValueError: when `photos` holds something else, or `data` too few photographs of a class.
    """
    data = data.resolve()
    for path in photos.rglob("*"):
        if path.is_symlink() and data in pathlib.Path(os.readlink(path)).parents:
            path.unlink()  # it may have lost its photograph, or belong to another part by now
        elif path.is_symlink() or not path.is_dir():
            raise ValueError(f"--photos must be a new folder, or one made from the same --data. Received: {path}")
    for path in sorted(photos.rglob("*"), reverse=True):  # what was inside before what it was in
        if not any(path.iterdir()):
            path.rmdir()
    for folder in sorted(path for part in ("train", "test") for path in (data / part).iterdir() if path.is_dir()):
        for index, path in enumerate(photographs(folder)):
            part = "validation" if folder.parent.name == "train" and index % 10 == 9 else folder.parent.name
            link = photos / part / folder.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            partial = link.with_name(f"{path.name}.{os.getpid()}")
            partial.symlink_to(path)
            partial.replace(link)
    for name in sorted({path.name for path in (*data.glob("train/*"), *data.glob("test/*")) if path.is_dir()}):
        for part in ("train", "validation", "test"):
            if not photographs(photos / part / name):
                raise ValueError(
                    "--data must hold photographs named *.jpg, *.jpeg or *.png of each class, at least 10 for training "
                    f"(every tenth is for validation) and 1 for testing. Received: none for {part} of {name} in {data}"
                )


def images(folder: pathlib.Path, classes: list[str], size: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the central squares of a folder's photographs, uint8 `(n, size, size, 3)`, and their labels `(n,)`."""
    found, labels = [], []
    for label, name in enumerate(classes):
        for path in photographs(folder / name)[: limit or None]:
            image = tf.io.decode_jpeg(path.read_bytes(), channels=3)  # a PNG as well
            side = min(image.shape[:2])
            image = tf.image.resize_with_crop_or_pad(image, side, side)
            image = tf.image.central_crop(image, 0.875)
            found.append(tf.cast(tf.image.resize(image, (size, size), antialias=True), tf.uint8).numpy())
            labels.append(label)
    return np.stack(found), np.array(labels)


def build(size: int, classes: int) -> keras.Model:
    """Returns the untrained classifier of RGB images `(B, size, size, 3)` in [0, 255], ending in a softmax."""
    trunk = keras.applications.MobileNetV2((size, size, 3), alpha=0.35, include_top=False, weights=None)
    for layer in trunk.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # 0.999 is for trainings of a million steps
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.RandomFlip("horizontal"),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomZoom((-0.4, 0.1)),
            layers.Rescaling(1 / 127.5, offset=-1),
            trunk,
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def main() -> None:
    """Trains, says how good it is on the test photographs, and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", default="../shared/data/tf_flowers", help="folder of {train,test}/<class>/*.jpg (or .png)"
    )
    parser.add_argument("--photos", default="runs/own_photos", help="folder of the split that is made of them")
    parser.add_argument("--out", default="runs/own_teacher.keras")
    parser.add_argument("--size", type=int, default=64, help="side of the input in pixels")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--limit", type=int, default=0, help="photographs of each class; 0 = all")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and the augmentation")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    photos = pathlib.Path(args.photos)
    if not all(pathlib.Path(args.data, part).is_dir() for part in ("train", "test")):
        parser.error(f"--data must be a folder of {{train,test}}/<class>/*.jpg. Received: {args.data}")
    try:
        split(pathlib.Path(args.data), photos)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    classes = sorted(path.name for path in (photos / "train").iterdir())
    x, y = images(photos / "train", classes, args.size, args.limit)
    model = build(args.size, len(classes))
    rate = keras.optimizers.schedules.CosineDecay(2e-3, args.epochs * -(-len(x) // 64))
    model.compile(keras.optimizers.AdamW(rate, weight_decay=0.05), "categorical_crossentropy", metrics=["accuracy"])
    mixup = layers.MixUp(1.0)
    batches = tf.data.Dataset.from_tensor_slices((x, keras.utils.to_categorical(y))).shuffle(len(x)).batch(64)
    batches = batches.map(lambda images, labels: tuple(mixup({"images": images, "labels": labels}).values()))
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    # the same command goes on after an interruption; the backup goes when the file is there
    resume = keras.callbacks.BackupAndRestore(f"{args.out}.backup", delete_checkpoint=False)
    model.fit(batches.prefetch(2), epochs=args.epochs, verbose=2, callbacks=[resume])
    partial = pathlib.Path(args.out).with_name(f"partial-{pathlib.Path(args.out).name}")
    model.save(partial)
    os.replace(partial, args.out)
    shutil.rmtree(f"{args.out}.backup", ignore_errors=True)
    for part in ("validation", "test"):
        x, y = images(photos / part, classes, args.size, args.limit)
        _, accuracy = model.evaluate(x, keras.utils.to_categorical(y), verbose=0)
        print(f"{args.out}: {100 * accuracy:.1f} % of the {part} photographs right; classes: {', '.join(classes)}")


if __name__ == "__main__":
    main()
