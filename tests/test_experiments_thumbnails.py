"""Thumbnails as a data set: each image once, as the downscaler makes it, in the folder of its class."""

import numpy as np
import pytest
import tensorflow as tf

from experiments import thumbnails
from thumbnet_tf.config import UserError
from thumbnet_tf.data import pipeline, sources


@pytest.mark.parametrize("kind", ["thumbnet", "area"])
def test_thumbnails_are_those_of_the_run(tiny_run, tmp_path, kind, capsys):
    thumbnails.main(thumbnails.Options(run_dir=str(tiny_run.path), kind=kind, out=str(tmp_path / "out")))
    cfg = tiny_run.config().resolved()
    dataset = sources.load(cfg)
    total = sum(split.num_examples for split in dataset.splits.values())
    assert capsys.readouterr().out.startswith(f"{total} thumbnails in ")
    split = dataset.splits["test"]
    assert len(list((tmp_path / "out" / "test").rglob("*.png"))) == split.num_examples
    index = split.num_examples - 1
    image = pipeline.eval_images(split, cfg, [index])
    if kind == "area":  # the mean of 2 x 2 pixels
        expected = image.astype(np.float32).reshape(1, 16, 2, 16, 2, 3).mean((2, 4))
    else:
        expected = tiny_run.load_model("thumbnet", "downscaler")(image).numpy()
    path = tmp_path / "out" / "test" / dataset.class_names[split.labels[index]] / f"{index:06d}.png"
    assert np.abs(tf.io.decode_png(path.read_bytes()).numpy() - np.rint(expected[0])).max() <= 1


def test_mistakes_are_named(tiny_run, tmp_path):
    with pytest.raises(UserError, match="--kind must be one of bicubic, area, thumbnet. Received: 'supervised'"):
        thumbnails.main(thumbnails.Options(run_dir=str(tiny_run.path), kind="supervised", out=str(tmp_path / "out")))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="--out must be new or empty"):
        thumbnails.main(thumbnails.Options(run_dir=str(tiny_run.path), out=str(tmp_path)))
    with pytest.raises(UserError, match="--out must name the folder"):
        thumbnails.Options(run_dir=str(tiny_run.path))
