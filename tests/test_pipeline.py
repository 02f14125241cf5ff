"""Tests of the batches: every image once, any step addressable, one order for ever."""

import re
import types

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import TinyPhotos, write_folder

from thumbnet_tf import preprocess
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline
from thumbnet_tf.data.pipeline import eval_batches, steps_per_epoch, train_batches
from thumbnet_tf.data.sources import load
from thumbnet_tf.data.store import FileStore

STORES = ("memory", "files", "stream")
OPTIONS = {"image_size": 32, "batch_size": 4, "seed": 3, "epochs": 3, "augment": "crop_flip"}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """A train split of 14 (stream: 15) images and its configuration, for each kind of store."""
    root = tmp_path_factory.mktemp("data")
    folder = f"folder:{write_folder(root / 'pets', {'cat': 10, 'dog': 10})}"
    TinyPhotos(config="train", data_dir=root).download_and_prepare()
    found = {}
    for kind, dataset, limit in (("memory", folder, 1.0), ("files", folder, 0.0), ("stream", "tiny_photos/train", 0.0)):
        cfg = Config(dataset=dataset, data_dir=str(root), memory_limit_gb=limit, **OPTIONS)
        found[kind] = load(cfg, splits=("train",)).splits["train"], cfg
    tiny = Config(dataset="tiny_photos/train", data_dir=str(root), **OPTIONS)
    found["tiny_memory"] = load(tiny, splits=("train",)).splits["train"], tiny
    return found


def replace(cfg, **changes):
    return Config(**{**{name: getattr(cfg, name) for name in cfg.__dataclass_fields__}, **changes})


def collect(dataset):
    """Returns all batches stacked, a dict of (steps, B, ...) arrays."""
    batches = list(dataset.as_numpy_iterator())
    return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize("kind", STORES)
def test_train_batches_are_what_they_say(splits, kind):
    split, cfg = splits[kind]
    dataset = train_batches(split, cfg)
    assert dataset.element_spec == {
        "image": tf.TensorSpec((4, 32, 32, 3), tf.uint8),
        "label": tf.TensorSpec((4,), tf.int64),
        "id": tf.TensorSpec((4,), tf.int64),
        "view": tf.TensorSpec((4,), tf.int64),
        "mask": tf.TensorSpec((4,), tf.float32),
    }
    n, steps = split.num_examples, split.num_examples // 4
    assert steps_per_epoch(split, cfg) == steps
    assert int(dataset.cardinality()) == 3 * steps
    got = collect(dataset)
    ids = got["id"].reshape(3, steps * 4)
    assert all(len(set(epoch)) == steps * 4 for epoch in ids)
    assert len({tuple(epoch) for epoch in ids}) == 3
    assert len({frozenset(range(n)) - set(epoch) for epoch in ids}) > 1  # what is left out differs
    np.testing.assert_array_equal(got["label"], split.labels[got["id"]])
    np.testing.assert_array_equal(got["mask"], 1)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("start", [1, 3, 4, 7, 9])
def test_starting_anywhere_equals_going_on(splits, kind, start):
    split, cfg = splits[kind]
    whole, tail = collect(train_batches(split, cfg)), train_batches(split, cfg, start_step=start)
    total = len(whole["id"])
    assert int(tail.cardinality()) == max(total - start, 0)
    rest = list(tail.as_numpy_iterator())
    assert len(rest) == max(total - start, 0)
    for i, batch in enumerate(rest):
        for key, value in batch.items():
            np.testing.assert_array_equal(value, whole[key][start + i], err_msg=f"{key} of step {start + i}")


def test_starting_at_the_end_gives_nothing(splits):
    for kind in STORES:
        assert list(train_batches(*splits[kind], start_step=1000)) == []


def test_epochs_argument_and_seed(splits):
    split, cfg = splits["memory"]
    short, long = collect(train_batches(split, cfg, epochs=2)), collect(train_batches(split, cfg, epochs=5))
    steps = steps_per_epoch(split, cfg)
    assert (len(short["id"]), len(long["id"])) == (2 * steps, 5 * steps)
    np.testing.assert_array_equal(short["image"], long["image"][: 2 * steps])
    other = collect(train_batches(split, replace(cfg, seed=4), epochs=2))
    assert not np.array_equal(other["id"], short["id"])


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
@pytest.mark.parametrize("kind", STORES)
def test_train_images_are_views_by_seed_id_and_epoch(splits, kind, augment):
    split, cfg = splits[kind]
    cfg = replace(cfg, augment=augment, crop_fraction=0.8)
    get = splits["tiny_memory" if kind == "stream" else "memory"][0].store.get
    got = collect(train_batches(split, cfg, epochs=2))
    steps = steps_per_epoch(split, cfg)
    for step in range(2 * steps):
        for image, index in zip(got["image"][step], got["id"][step], strict=True):
            seed = preprocess.view_seed(3, tf.constant(index), tf.constant(step // steps))
            expected = preprocess.training_image(
                get(index), seed, augment=augment, size=32, crop_fraction=0.8, min_area=0.35
            )
            np.testing.assert_array_equal(image, expected)


def test_memory_and_files_give_the_same_batches(splits):
    for make in (train_batches, eval_batches):
        memory, files = collect(make(*splits["memory"])), collect(make(*splits["files"]))
        for key in memory:
            np.testing.assert_array_equal(memory[key], files[key])


@pytest.mark.parametrize("global_seed", [0, 5])
def test_order_is_fixed(splits, global_seed):
    # Other numbers here mean that a run can't be repeated or resumed with this version.
    tf.random.set_seed(global_seed)
    assert collect(train_batches(*splits["memory"], epochs=1))["id"].tolist() == GOLDEN_ORDER["memory"]
    assert collect(train_batches(*splits["stream"], epochs=1))["id"].tolist() == GOLDEN_ORDER["stream"]


GOLDEN_ORDER = {
    "memory": [[9, 11, 3, 5], [10, 4, 12, 13], [0, 7, 1, 2]],
    "stream": [[1, 10, 11, 7], [2, 8, 14, 9], [13, 5, 6, 3]],
}


def test_every_place_in_an_epoch_is_any_images(splits):
    split, cfg = splits["memory"]
    n = split.num_examples
    ids = collect(train_batches(split, replace(cfg, augment="none", batch_size=n), epochs=300))["id"]
    counts = np.stack([np.bincount(ids[:, place], minlength=n) for place in range(n)])
    expected = 300 / n
    chi2 = ((counts - expected) ** 2 / expected).sum() / (n - 1) ** 2
    assert 0.6 < chi2 < 1.4  # 1 expected; n = 14, so the standard deviation is 0.11


def test_batch_larger_than_the_split_is_told(splits):
    split, cfg = splits["memory"]
    with pytest.raises(UserError, match=r"--batch_size must not exceed the \d+ train images.*Received: 500"):
        train_batches(split, replace(cfg, batch_size=500))


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_eval_batches_hold_every_image_once(splits, kind, batch_size):
    split, cfg = splits[kind]
    n = split.num_examples
    dataset = eval_batches(split, replace(cfg, crop_fraction=0.8), batch_size)
    assert dataset.element_spec["image"].shape == (batch_size, 32, 32, 3)
    assert int(dataset.cardinality()) == -(-n // batch_size)
    got = {key: np.concatenate(list(value)) for key, value in collect(dataset).items()}
    padding = -n % batch_size
    np.testing.assert_array_equal(got["id"], [*range(n), *[-1] * padding])
    np.testing.assert_array_equal(got["mask"], [1] * n + [0] * padding)
    np.testing.assert_array_equal(got["label"], [*split.labels, *[0] * padding])
    assert not got["image"][n:].any()
    get = splits["tiny_memory" if kind == "stream" else "memory"][0].store.get
    for index in range(n):
        np.testing.assert_array_equal(got["image"][index], preprocess.eval_crop(get(index), 32, 0.8))


@pytest.mark.parametrize("kind", STORES)
def test_chosen_images_come_in_the_order_asked(splits, kind):
    split, cfg = splits[kind]
    every = np.concatenate(list(collect(eval_batches(split, cfg, 1))["image"]))
    np.testing.assert_array_equal(pipeline.eval_images(split, cfg, [5, 2, 9]), every[[5, 2, 9]])


def test_eval_batch_size_defaults_to_the_option(splits):
    assert eval_batches(*splits["memory"]).element_spec["id"].shape == (4,)


@pytest.mark.parametrize("kind", STORES)
def test_datasets_are_not_sharded(splits, kind):
    for dataset in (train_batches(*splits[kind]), eval_batches(*splits[kind])):
        policy = dataset.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.OFF
        assert dataset.options().deterministic is True


def test_stream_buffer_smaller_than_the_split(splits, monkeypatch):
    monkeypatch.setattr(pipeline, "STREAM_SHUFFLE", 3)
    split, cfg = splits["stream"]
    whole = collect(train_batches(split, cfg))
    tail = collect(train_batches(split, cfg, start_step=5))
    np.testing.assert_array_equal(tail["image"], whole["image"][5:])
    assert len(set(whole["id"][:3].ravel())) == 12
    assert len({tuple(block % 3) for block in whole["id"][:3].reshape(4, 3)}) > 1  # each block in an order of its own


@pytest.mark.parametrize("kind", [*STORES[:-1], pytest.param(STORES[-1], marks=pytest.mark.slow)])
def test_machines_and_replicas_share_each_batch(splits, kind):
    split, cfg = splits[kind]  # batches of 4, for 2 machines of 2 replicas each
    for make, options in ((train_batches, {"start_step": 2}), (train_batches, {"views": 2}), (eval_batches, {})):
        whole = collect(make(split, cfg, **options))
        parts = []
        for machine in range(2):
            context = tf.distribute.InputContext(2, machine, 4)
            dataset = make(split, cfg, context=context, **options)
            assert dataset.element_spec["image"].shape == (1, 32, 32, 3)
            got = collect(dataset)
            assert int(dataset.cardinality()) == len(got["id"]) == 2 * len(whole["id"])
            parts.append({key: value.reshape(-1, 2, *value.shape[2:]) for key, value in got.items()})
        for key, value in whole.items():
            both = np.concatenate([part[key] for part in parts], axis=1)
            np.testing.assert_array_equal(both, value, err_msg=key)


@pytest.mark.parametrize("kind", STORES)
def test_views_repeat_and_do_not_depend_on_the_seed(splits, kind):
    split, cfg = splits[kind]
    shown = {}
    for seed in (0, 7):
        got = collect(train_batches(split, replace(cfg, seed=seed), epochs=4, views=2))
        flat = {key: value.reshape(-1, *value.shape[2:]) for key, value in got.items()}
        epoch = np.arange(len(flat["id"])) // (split.num_examples // 4 * 4)
        np.testing.assert_array_equal(flat["view"], epoch % 2)
        for index, view, image in zip(flat["id"], flat["view"], flat["image"], strict=True):
            np.testing.assert_array_equal(shown.setdefault((index, view), image), image)
    assert any(np.any(shown[i, 0] != shown[i, 1]) for i in range(4) if (i, 0) in shown and (i, 1) in shown)
    for view in (0, 1):
        images = np.concatenate(list(pipeline.view_batches(split, cfg, view, 3, 4).as_numpy_iterator()))
        assert len(images) == split.num_examples - 3
        for index, image in enumerate(images, 3):
            np.testing.assert_array_equal(image, shown.get((index, view), image))
    crops = np.concatenate(list(pipeline.view_batches(split, cfg, None, 0, 5).as_numpy_iterator()))
    evaluated = collect(eval_batches(split, cfg))["image"].reshape(-1, 32, 32, 3)
    np.testing.assert_array_equal(crops, evaluated[: len(crops)])


def test_mixed_views_are_made_of_the_views_they_name(splits):
    split, cfg = splits["memory"]
    plain = replace(cfg, view_seed=9)
    views = [next(iter(pipeline.view_batches(split, plain, view, 0, 100))).numpy() for view in (0, 1)]
    shares = set()
    for batch in train_batches(split, replace(plain, mixup_alpha=1.0), epochs=2, views=2).as_numpy_iterator():
        for image, label, index, view, _, other_label, share in zip(
            *(batch[name] for name in ("image", "label", "id", "view", "mask", "other_label", "share")), strict=True
        ):
            assert label == split.labels[index]
            candidates = [
                np.rint(share * views[view][index].astype(np.float32) + (1 - share) * views[view][other])
                for other in np.flatnonzero(split.labels == other_label)
            ]
            assert min(np.abs(candidate - image).max() for candidate in candidates) <= 1
            shares.add(float(share))
    assert len(shares) > 10
    stream = splits["stream"][0]
    with pytest.raises(UserError, match="--mixup_alpha needs images that can be read in any order"):
        steps_per_epoch(stream, replace(cfg, mixup_alpha=1.0))


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, "evaluation crops, 0.875 of the short side, have 56 px already .* another --crop_fraction, such as 1$"),
        ({"crop_fraction": 1.0}, None),
        ({"image_size": 64, "crop_fraction": 1.0}, "crops, 1 of the short side, have 64 px already .*, such as 0.875$"),
        ({"augment": "none"}, None),
    ],
)
def test_evaluation_pixel_by_pixel_is_told(tmp_path, photos, caplog, options, warned):
    paths = []
    for number, image in enumerate(photos(3, 80)):
        paths.append(str(tmp_path / f"{number}.png"))
        tf.io.write_file(paths[-1], tf.io.encode_png(image[:64].astype(np.uint8)))
    split = types.SimpleNamespace(store=FileStore(paths), num_examples=3)
    assert pipeline.short_sides(split, [2, 0]).tolist() == [64, 64]
    cfg = Config(**{"dataset": "folder:x", "image_size": 56, "ratio": 2, "teacher": "x.keras", **options})
    pipeline.warn_of_unresized(split, cfg)
    if warned is None:
        assert not caplog.records
    else:
        assert re.search(warned, caplog.text.strip())


def test_images_are_mixed_by_their_own_share():
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3)), tf.uint8)
    split = types.SimpleNamespace(store=types.SimpleNamespace(get=lambda index: images[index]), num_examples=9)
    cfg = Config(dataset="folder:x", image_size=32, augment="crop", mixup_alpha=0.2, crop_fraction=1.0)
    index, view = tf.constant(4, tf.int64), tf.constant(1, tf.int64)
    _, (other, share) = pipeline._view(split, cfg, 3, view, index)
    wanted = preprocess.mixing(preprocess.view_seed(3, index, view), 0.2, 9)
    assert (int(other), float(share)) == (int(wanted[0]), float(wanted[1]))
