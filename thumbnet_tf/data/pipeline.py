"""From a `Split` to batches: `train_batches` and `eval_batches`.

Both give dicts of `image` uint8 (B, S, S, 3) in [0, 255], `label` int64 (B,), `id` int64 (B,), the example's index in
its split, `view` int64 (B,), the number of the augmentation it is shown in, and `mask` float32 (B,), 1 for an example
and 0 for padding. Where training mixes images, `share` float32 (B,) is the label's share of the image, and
`other_label` int64 (B,) holds for the rest. B is `cfg.batch_size` where one replica trains; of several, each gets its
equal part of every batch.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from thumbnet_tf import preprocess
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data.sources import Split

STREAM_SHUFFLE = 4096  # encoded records shuffled together in a split that is neither in memory nor in files

_ORDER = -1  # stands where an epoch stands in the seed of a view, so that no view shares the seed of an order
_ALONE = tf.distribute.InputContext()
_SAMPLE = 64  # images whose sizes stand for all

_log = logging.getLogger(__name__)


def steps_per_epoch(split: Split, cfg: Config) -> int:
    """Returns the number of full batches in an epoch; the images that fill none, mostly others each time, are left out.

    Raises:
        UserError: when the split doesn't fill one batch, or streamed images are to be mixed.
    """
    if cfg.mixup_alpha and not split.store.random_access:
        raise UserError(
            "--mixup_alpha needs images that can be read in any order; raise --memory_limit_gb so that they stay in "
            f"memory, use a folder of images, or leave it at 0. Received: --mixup_alpha={cfg.mixup_alpha:g}"
        )
    if split.num_examples < cfg.batch_size:
        raise UserError(
            f"--batch_size must not exceed the {split.num_examples} {split.name} images; "
            f"lower it or add images. Received: {cfg.batch_size}"
        )
    return split.num_examples // cfg.batch_size


def train_batches(
    split: Split,
    cfg: Config,
    start_step: int = 0,
    epochs: int | None = None,
    *,
    views: int = 0,
    context: tf.distribute.InputContext = _ALONE,
) -> tf.data.Dataset:
    """Returns shuffled, augmented training batches, from any step on.

    The order is a function of (cfg.seed, epoch) and an example's augmentation one of (cfg.seed, id, epoch), or of
    (cfg.view_seed, id, epoch mod views) where the views repeat. So what starts at step k equals, bit for bit, what an
    uninterrupted run sees from step k on, whatever the threads do, and however many machines share the batches.
    A streamed split is only shuffled 4,096 records at a time, and starting late reads the epoch's earlier records
    without decoding them.

    Args:
        split: where the images come from.
        cfg: gives batch size, seed, image size and augmentation.
        start_step: number of steps already done, over all epochs.
        epochs: epochs from step 0 to the end; None = cfg.epochs.
        views: number of different augmentations of an image, which the epochs go through again and again; 0 = a new
            one each epoch.
        context: which part of each batch is this machine's, and how many replicas share a batch.

    Returns:
        A dataset of epochs * steps_per_epoch - start_step batches, or for several replicas on this machine of as many
        parts of each batch, one after the other.

    Raises:
        UserError: when the split doesn't fill one batch, or streamed images are to be mixed.
    """
    cfg = cfg.resolved()
    epoch_examples = steps_per_epoch(split, cfg) * cfg.batch_size
    total = (cfg.epochs if epochs is None else epochs) * epoch_examples
    start = min(start_step * cfg.batch_size, total)
    first = start // epoch_examples
    labels = tf.constant(split.labels, tf.int64)
    low, high = _share(cfg.batch_size, context)

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        """Returns (epoch, index) of each example to come, and its encoded data in a stream."""
        seed = preprocess.view_seed(cfg.seed, epoch, _ORDER)
        seen = tf.where(epoch == first, tf.constant(start % epoch_examples, tf.int64), 0)
        if split.store.random_access:
            order = tf.random.experimental.stateless_shuffle(tf.range(split.num_examples, dtype=tf.int64), seed)
            order = tf.reshape(tf.reshape(order[seen:epoch_examples], (-1, cfg.batch_size))[:, low:high], (-1,))
            return tf.data.Dataset.from_tensor_slices((tf.fill(tf.shape(order), epoch), order))

        def shuffled(block: tf.Tensor, records: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            own = seed + tf.stack([0, tf.cast(block, tf.int32)])
            order = tf.random.experimental.stateless_shuffle(tf.range(tf.size(records[0])), own)
            return tuple(tf.gather(each, order) for each in records)

        # tf.data's own shuffle takes no seed of an epoch once a global seed is set, and would depend on it
        records = split.store.encoded().batch(STREAM_SHUFFLE).enumerate().map(shuffled).unbatch()
        records = _rows(records.take(epoch_examples).skip(seen), low, high, cfg.batch_size)
        return records.map(lambda index, data: (epoch, index, data))

    def example(epoch: tf.Tensor, index: tf.Tensor, *data: tf.Tensor) -> dict[str, tf.Tensor]:
        view, seed = (epoch % views, cfg.view_seed) if views else (epoch, cfg.seed)
        image, mixed = _view(split, cfg, seed, view, index, *data)
        shown = _example(image, labels[index], index, view)
        return shown if mixed is None else shown | {"other_label": labels[mixed[0]], "share": mixed[1]}

    dataset = tf.data.Dataset.range(first, total // epoch_examples).flat_map(of_epoch)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality((total - start) // context.num_input_pipelines))
    return _batched(
        dataset.map(example, tf.data.AUTOTUNE, deterministic=True), cfg.batch_size // context.num_replicas_in_sync
    )


def view_batches(split: Split, cfg: Config, view: int | None, start: int, batch_size: int) -> tf.data.Dataset:
    """Returns one view of the examples in order, as `train_batches` shows it where views repeat.

    Args:
        split: where the images come from.
        cfg: gives the views' seed, image size and augmentation.
        view: number of the view; None = what evaluation shows.
        start: index of the first example.
        batch_size: images in a batch; the last may hold fewer.

    Returns:
        A dataset of uint8 (batch_size, S, S, 3) in [0, 255].
    """
    cfg = cfg.resolved()

    def image(index: tf.Tensor, *data: tf.Tensor) -> tf.Tensor:
        if view is None:
            return _crop(split, cfg, index, *data)
        return _view(split, cfg, cfg.view_seed, tf.constant(view, tf.int64), index, *data)[0]

    if split.store.random_access:
        dataset = tf.data.Dataset.range(start, split.num_examples)
    else:
        dataset = split.store.encoded().skip(start)
    return dataset.map(image, tf.data.AUTOTUNE, deterministic=True).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def eval_batches(
    split: Split,
    cfg: Config,
    batch_size: int | None = None,
    *,
    context: tf.distribute.InputContext = _ALONE,
) -> tf.data.Dataset:
    """Returns every example exactly once, in order, without augmentation.

    The last batch is filled up with rows of mask 0, image 0, label 0 and id -1, so that all batches have one static
    shape and yet each image counts once.

    Args:
        split: where the images come from.
        cfg: gives image size and crop.
        batch_size: images in a batch; None = cfg.batch_size.
        context: as in `train_batches`.

    Returns:
        A dataset of ceil(n / batch_size) batches.
    """
    cfg = cfg.resolved()
    batch_size = cfg.batch_size if batch_size is None else batch_size
    labels = tf.constant(split.labels, tf.int64)

    def example(index: tf.Tensor, *data: tf.Tensor) -> dict[str, tf.Tensor]:
        return _example(_crop(split, cfg, index, *data), labels[index], index, tf.constant(0, tf.int64))

    store = split.store
    low, high = _share(batch_size, context)
    batches = -(-split.num_examples // batch_size)
    dataset = tf.data.Dataset.range(split.num_examples) if store.random_access else store.encoded()
    dataset = _rows(dataset, low, high, batch_size)
    last = split.num_examples - (batches - 1) * batch_size  # examples in the last batch of all machines
    missing = (high - low) - min(max(last - low, 0), high - low)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches * (high - low) - missing))
    dataset = dataset.map(example, tf.data.AUTOTUNE, deterministic=True)
    if missing:
        nobody = tf.constant(-1, tf.int64)
        filler = tf.zeros((cfg.image_size, cfg.image_size, 3), tf.uint8)
        padding = {**_example(filler, nobody + 1, nobody, nobody + 1), "mask": tf.constant(0.0)}
        dataset = dataset.concatenate(tf.data.Dataset.from_tensors(padding).repeat(missing))
    return _batched(dataset, batch_size // context.num_replicas_in_sync)


def eval_images(split: Split, cfg: Config, ids: Sequence[int]) -> np.ndarray:
    """Returns some examples as evaluation shows them, uint8 (n, S, S, 3) in [0, 255], in the order of `ids`."""
    cfg = cfg.resolved()
    crops = _decoded(split, ids).map(
        lambda index, image: (index, preprocess.eval_crop(image, cfg.image_size, cfg.crop_fraction)), tf.data.AUTOTUNE
    )
    images = {int(index): image for index, image in crops.as_numpy_iterator()}
    return np.stack([images[index] for index in ids])


def warn_of_unresized(split: Split, cfg: Config) -> None:
    """Warns where evaluation shows images pixel by pixel and training never does, by the first of a split's images.

    A network may answer such sharp images worse than all others: `plant_56` in experiments/README.md.
    """
    cfg = cfg.resolved()
    if cfg.augment == "none":
        return
    shorts = short_sides(split, range(min(_SAMPLE, split.num_examples)))
    sides = preprocess.crop_side(shorts, cfg.crop_fraction).numpy()
    if np.mean(sides == cfg.image_size) > 0.5:
        _log.warning(
            "evaluation crops, %g of the short side, have %d px already and aren't resized, as all views in training "
            "are: T may answer them worse. Compare another --crop_fraction, such as %g",
            cfg.crop_fraction,
            cfg.image_size,
            1 if cfg.crop_fraction < 1 else 0.875,
        )


def short_sides(split: Split, ids: Sequence[int]) -> np.ndarray:
    """Returns the short sides of some examples in pixels, int32 (n,)."""
    sides = _decoded(split, ids).map(lambda index, image: tf.reduce_min(tf.shape(image)[:2]), tf.data.AUTOTUNE)
    return np.array(list(sides.as_numpy_iterator()), np.int32)


def _decoded(split: Split, ids: Sequence[int]) -> tf.data.Dataset:
    """Returns a dataset of (int64 index, uint8 (H, W, 3) image) of some examples."""
    store, wanted = split.store, tf.constant(ids, tf.int64)
    if store.random_access:
        return tf.data.Dataset.from_tensor_slices(wanted).map(lambda index: (index, store.get(index)))
    found = store.encoded().filter(lambda index, data: tf.reduce_any(wanted == index)).take(len(ids))
    return found.map(lambda index, data: (index, preprocess.decode_image(data)))


def encoded_images(split: Split) -> Iterator[bytes]:
    """Yields every image of a split in order, whole: as its file is, or as a PNG where only the pixels are kept."""
    if not split.store.random_access:
        yield from (data for _, data in split.store.encoded().as_numpy_iterator())
        return
    dataset = tf.data.Dataset.range(split.num_examples)
    yield from dataset.map(split.store.file, tf.data.AUTOTUNE, deterministic=True).as_numpy_iterator()


def _view(
    split: Split, cfg: Config, seed: int, view: tf.Tensor, index: tf.Tensor, *data: tf.Tensor
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor] | None]:
    """Returns a view of an example as training shows it.

    Where MixUp is on, it is mixed with the same view of another example, and that one's index and the own share follow.
    """

    def single(index: tf.Tensor, *data: tf.Tensor) -> tf.Tensor:
        return preprocess.training_image(
            preprocess.decode_image(*data) if data else split.store.get(index),
            preprocess.view_seed(seed, index, view),
            augment=cfg.augment,
            size=cfg.image_size,
            crop_fraction=cfg.crop_fraction,
            min_area=cfg.random_crop_min_area,
        )

    if not cfg.mixup_alpha:
        return single(index, *data), None
    other, share = preprocess.mixing(preprocess.view_seed(seed, index, view), cfg.mixup_alpha, split.num_examples)
    return preprocess.mix(single(index), single(other), share), (other, share)


def _crop(split: Split, cfg: Config, index: tf.Tensor, *data: tf.Tensor) -> tf.Tensor:
    """Returns an example as evaluation shows it."""
    image = preprocess.decode_image(*data) if data else split.store.get(index)
    return preprocess.eval_crop(image, cfg.image_size, cfg.crop_fraction)


def _share(batch_size: int, context: tf.distribute.InputContext) -> tuple[int, int]:
    """Returns where in each batch of all machines this one's part begins and ends."""
    share = batch_size // context.num_input_pipelines
    return context.input_pipeline_id * share, (context.input_pipeline_id + 1) * share


def _rows(dataset: tf.data.Dataset, low: int, high: int, batch_size: int) -> tf.data.Dataset:
    """Keeps the elements whose position in their batch of `batch_size` is at least `low` and below `high`."""
    if (low, high) == (0, batch_size):
        return dataset
    numbered = dataset.enumerate().filter(lambda i, element: (i % batch_size >= low) & (i % batch_size < high))
    return numbered.map(lambda i, element: element)


def _example(image: tf.Tensor, label: tf.Tensor, index: tf.Tensor, view: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"image": image, "label": label, "id": index, "view": view, "mask": tf.constant(1.0)}


def _batched(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # a strategy that is given a dataset must not shard it: that would change the batches
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)
