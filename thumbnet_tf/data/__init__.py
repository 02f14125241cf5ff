"""Image sources and input pipelines."""

from thumbnet_tf.data.pipeline import eval_batches, steps_per_epoch, train_batches
from thumbnet_tf.data.sources import Dataset, Split, load

__all__ = ["Dataset", "Split", "eval_batches", "load", "steps_per_epoch", "train_batches"]
