"""A small configuration and what trains by it."""

import keras
import numpy as np

from thumbnet_tf import stages, thumbnet
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import Config
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.trainer import Trainer

CLASSES = 3


def config(**values) -> Config:
    common = {
        "image_size": 32,
        "ratio": 2,
        "width": 0.0625,
        "fm_tap": "stage1",
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "teacher_learning_rate": 0.01,
        "warmup_fraction": 0.0,
        "downscaler_width": 4,
    }
    return Config(**{**common, **values})


def make_trainer(
    method: str, cfg: Config, synchronized: bool = False, steps: int = 10, mapping_steps: int = 0
) -> Trainer:
    keras.utils.set_random_seed(7)
    teacher = None if method == stages.ORIGINAL else thumbnet.build_teacher(cfg, CLASSES, synchronized=synchronized)
    trainer = build_trainer(method, cfg, CLASSES, teacher, mapping_steps=mapping_steps, synchronized=synchronized)
    variables, late = trainer.trainable_variables, trainer.late_variables()
    optimizer = build_optimizer(cfg, cfg.learning_rate, steps, variables, late, mapping_steps)
    trainer.compile(optimizer=optimizer, run_eagerly=True)  # `fit` takes few steps here, sooner done than traced
    return trainer


def values(variables) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]
