"""From a method's name to what trains it: E, S and D, started as the method says, with its losses."""

import logging

import keras

from thumbnet_tf import backbones, graph, stages, teachers, thumbnet
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.folding import fold
from thumbnet_tf.stages import METHODS
from thumbnet_tf.trainer import Trainer
from thumbnet_tf.training_layers import for_training

_log = logging.getLogger(__name__)


def build_trainer(
    method: str,
    cfg: Config,
    num_classes: int,
    teacher: keras.Model | None,
    *,
    mapping_steps: int = 0,
    synchronized: bool = False,
) -> Trainer:
    """Builds the models of a method and what trains them, without an optimizer.

    Args:
        method: a row of `stages.METHODS`.
        cfg: the configuration.
        num_classes: C.
        teacher: T, any Keras classifier that `--teacher` takes; None when T itself is to be trained.
        mapping_steps: `cfg.mapping_epochs` in steps, which hang on the data.
        synchronized: whether batch statistics are taken over all replicas.

    Raises:
        UserError: when there is no such method, or T isn't there, can't be used or has other classes.
    """
    with graph.precision(cfg.mixed_precision):
        return _built(method, cfg, num_classes, teachers.accepted(teacher, cfg, method), mapping_steps, synchronized)


def _built(
    method: str, cfg: Config, num_classes: int, teacher: keras.Model | None, mapping_steps: int, synchronized: bool
) -> Trainer:
    if teacher is not None and teacher.output["logits"].shape[-1] != num_classes:
        raise UserError(
            f"T must have as many classes as there are. Received: a T of {teacher.output['logits'].shape[-1]} classes "
            f"for {num_classes}"
        )
    keras.utils.set_random_seed(cfg.seed)  # every method starts E and D alike, and S as far as it starts from T
    row = METHODS[method]
    weights = stages.loss_weights(method, cfg)
    small = (
        None if row.downscaler == "none" else thumbnet.build_downscaler(cfg, row.downscaler, synchronized=synchronized)
    )
    if small is not None:
        # what isn't trained must be T itself
        varied = cfg if row.losses else thumbnet.as_teacher(cfg)
        student, anew = thumbnet.build_student(varied, teacher, synchronized=synchronized)
        if anew:
            thumbnet.check_untrained(method, anew)
            some = ", ".join(anew[:3]) + (", ..." if len(anew) > 3 else "")
            _log.info("%s: %d layers of S start anew, for their shapes aren't T's: %s", method, len(anew), some)
    elif method == stages.ORIGINAL:
        student = thumbnet.build_teacher(cfg, num_classes, synchronized=synchronized, initial=True)
    else:
        student = backbones.build(cfg.backbone, cfg.image_size, num_classes, cfg.slim_width, synchronized=synchronized)
    if cfg.mapping_epochs and "fm" in weights and not mapping_steps:
        _log.warning("--mapping_epochs=%d counts only where mapping_steps are given", cfg.mapping_epochs)
    tap = thumbnet.fm_tap(cfg, student if teacher is None else teacher)
    decoder = thumbnet.build_decoder(student, teacher, tap) if set(stages.DECODED) & set(weights) else None
    if not synchronized:  # over several replicas, Keras' own layer adds their statistics up
        student, small = for_training(student), small and for_training(small)
    if teacher is not None:  # the same function, a tenth faster; T may have been trained in another precision
        teacher = fold(teacher, keep_precision=cfg.mixed_precision != "float32")
    return Trainer(
        student,
        downscaler=small,
        teacher=teacher,
        decoder=decoder,
        loss_weights=weights,
        temperature=cfg.temperature,
        fm_tap=tap,
        mapping_steps=mapping_steps,
        mm_std_weight=cfg.mm_std_weight,
        label_smoothing=cfg.label_smoothing,
        clip_norm=cfg.clip_norm,
        thumbnail_jpeg=cfg.thumbnail_jpeg,
    )
