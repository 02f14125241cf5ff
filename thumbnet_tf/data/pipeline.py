"""From a `Split` to batches: `train_batches` and `eval_batches`.

Both give dicts of `image` uint8 (B, S, S, 3) in [0, 255], `label` int64 (B,), `id` int64 (B,), the example's index in
its split, and `mask` float32 (B,), 1 for an example and 0 for padding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from thumbnet_tf import preprocess
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data.sources import Split

STREAM_SHUFFLE = 4096  # encoded records shuffled together in a split that is neither in memory nor in files

_ORDER = -1  # stands where an epoch stands in the seed of a view, so that no view shares the seed of an order


def steps_per_epoch(split: Split, cfg: Config) -> int:
    """Returns the number of full batches in an epoch; the remainder is left out, another one each epoch.

    Raises:
        UserError: when the split doesn't fill one batch.
    """
    if split.num_examples < cfg.batch_size:
        raise UserError(
            f"--batch_size must not exceed the {split.num_examples} {split.name} images; "
            f"lower it or add images. Received: {cfg.batch_size}"
        )
    return split.num_examples // cfg.batch_size


def train_batches(split: Split, cfg: Config, start_step: int = 0, epochs: int | None = None) -> tf.data.Dataset:
    """Returns shuffled, augmented training batches, from any step on.

    The order is a function of (cfg.seed, epoch) and an example's augmentation one of (cfg.seed, id, epoch). So what
    starts at step k equals, bit for bit, what an uninterrupted run sees from step k on, whatever the threads do.
    A streamed split is only shuffled 4,096 records at a time, and starting late reads the epoch's earlier records
    without decoding them.

    Args:
        split: where the images come from.
        cfg: gives batch size, seed, image size and augmentation.
        start_step: number of steps already done, over all epochs.
        epochs: epochs from step 0 to the end; None = cfg.epochs.

    Returns:
        A dataset of epochs * steps_per_epoch - start_step batches.

    Raises:
        UserError: when the split doesn't fill one batch.
    """
    cfg = cfg.resolved()
    epoch_examples = steps_per_epoch(split, cfg) * cfg.batch_size
    total = (cfg.epochs if epochs is None else epochs) * epoch_examples
    start = min(start_step * cfg.batch_size, total)
    first = start // epoch_examples
    labels = tf.constant(split.labels, tf.int64)

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        """Returns (epoch, index) of each example to come, and its encoded data in a stream."""
        seed = preprocess.view_seed(cfg.seed, epoch, _ORDER)
        seen = tf.where(epoch == first, tf.constant(start % epoch_examples, tf.int64), 0)
        if split.store.random_access:
            order = tf.random.experimental.stateless_shuffle(tf.range(split.num_examples, dtype=tf.int64), seed)
            order = order[seen:epoch_examples]
            return tf.data.Dataset.from_tensor_slices((tf.fill(tf.shape(order), epoch), order))

        def shuffled(index: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            order = tf.random.experimental.stateless_shuffle(tf.range(tf.size(index)), seed)
            return tf.gather(index, order), tf.gather(data, order)

        # tf.data's own shuffle takes no seed of an epoch once a global seed is set, and would depend on it
        records = split.store.encoded().batch(STREAM_SHUFFLE).map(shuffled).unbatch()
        return records.take(epoch_examples).skip(seen).map(lambda index, data: (epoch, index, data))

    def example(epoch: tf.Tensor, index: tf.Tensor, *data: tf.Tensor) -> dict[str, tf.Tensor]:
        image = preprocess.training_image(
            preprocess.decode_image(*data) if data else split.store.get(index),
            preprocess.view_seed(cfg.seed, index, epoch),
            augment=cfg.augment,
            size=cfg.image_size,
            crop_fraction=cfg.crop_fraction,
            min_area=cfg.random_crop_min_area,
        )
        return _example(image, labels[index], index)

    dataset = tf.data.Dataset.range(first, total // epoch_examples).flat_map(of_epoch)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(total - start))
    return _batched(dataset.map(example, tf.data.AUTOTUNE, deterministic=True), cfg.batch_size)


def eval_batches(split: Split, cfg: Config, batch_size: int | None = None) -> tf.data.Dataset:
    """Returns every example exactly once, in order, without augmentation.

    The last batch is filled up with rows of mask 0, image 0, label 0 and id -1, so that all batches have one static
    shape and yet each image counts once.

    Args:
        split: where the images come from.
        cfg: gives image size and crop.
        batch_size: images in a batch; None = cfg.batch_size.

    Returns:
        A dataset of ceil(n / batch_size) batches.
    """
    cfg = cfg.resolved()
    batch_size = cfg.batch_size if batch_size is None else batch_size
    labels = tf.constant(split.labels, tf.int64)

    def example(index: tf.Tensor, *data: tf.Tensor) -> dict[str, tf.Tensor]:
        image = preprocess.decode_image(*data) if data else split.store.get(index)
        return _example(preprocess.eval_crop(image, cfg.image_size, cfg.crop_fraction), labels[index], index)

    store = split.store
    dataset = tf.data.Dataset.range(split.num_examples) if store.random_access else store.encoded()
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(split.num_examples))
    dataset = dataset.map(example, tf.data.AUTOTUNE, deterministic=True)
    missing = -split.num_examples % batch_size
    if missing:
        filler = tf.zeros((cfg.image_size, cfg.image_size, 3), tf.uint8)
        padding = {**_example(filler, tf.constant(0, tf.int64), tf.constant(-1, tf.int64)), "mask": tf.constant(0.0)}
        dataset = dataset.concatenate(tf.data.Dataset.from_tensors(padding).repeat(missing))
    return _batched(dataset, batch_size)


def eval_images(split: Split, cfg: Config, ids: Sequence[int]) -> np.ndarray:
    """Returns some examples as evaluation shows them, uint8 (n, S, S, 3) in [0, 255], in the order of `ids`."""
    cfg = cfg.resolved()
    store, wanted = split.store, tf.constant(ids, tf.int64)
    if store.random_access:
        found = tf.data.Dataset.from_tensor_slices(wanted).map(lambda index: (index, store.get(index)))
    else:
        found = store.encoded().filter(lambda index, data: tf.reduce_any(wanted == index)).take(len(ids))
        found = found.map(lambda index, data: (index, preprocess.decode_image(data)))
    crops = found.map(
        lambda index, image: (index, preprocess.eval_crop(image, cfg.image_size, cfg.crop_fraction)), tf.data.AUTOTUNE
    )
    images = {int(index): image for index, image in crops.as_numpy_iterator()}
    return np.stack([images[index] for index in ids])


def encoded_images(split: Split) -> Iterator[bytes]:
    """Yields every image of a split in order, whole and encoded without loss: as it is stored, or as PNG."""
    if not split.store.random_access:
        yield from (data for _, data in split.store.encoded().as_numpy_iterator())
        return
    dataset = tf.data.Dataset.range(split.num_examples)
    png = dataset.map(lambda index: tf.io.encode_png(split.store.get(index), 1), tf.data.AUTOTUNE, deterministic=True)
    yield from png.as_numpy_iterator()


def _example(image: tf.Tensor, label: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"image": image, "label": label, "id": index, "mask": tf.constant(1.0)}


def _batched(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Sharding by file can't be done here and sharding by element would change the batches: each worker reads all.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)
