"""Which options of a run don't go together; what each allows alone stands with it in `config.py`."""

from typing import Any

from thumbnet_tf.options import FlagError

AUTO = "auto"
APPLICATIONS = "keras.applications:"  # what --teacher begins with for a network of Keras' own


def check(cfg: Any) -> None:
    """Checks a configuration.

    Args:
        cfg: a `config.Config`, which calls this when it is made.

    Raises:
        FlagError: with the options' names, what was received and what is allowed.
    """
    if set("*?[]") & set(cfg.run_dir):  # TensorFlow would delete no old checkpoints, but look for such names
        raise FlagError(f"--run_dir can't have *, ?, [ or ] in it; choose another name. Received: {cfg.run_dir}")
    if cfg.ratio not in (2, 4):
        raise FlagError(f"--ratio must be 2 or 4. Received: {cfg.ratio}")
    if cfg.teacher_weights != "none" and not cfg.teacher.startswith(APPLICATIONS):
        raise FlagError(
            f"--teacher_weights goes with --teacher={APPLICATIONS}NAME only. Received: {cfg.teacher_weights!r} "
            f"with --teacher={cfg.teacher}"
        )
    if cfg.teacher_input != AUTO and not cfg.teacher.startswith(APPLICATIONS) and cfg.teacher[-6:] != ".keras":
        raise FlagError(
            f"--teacher_input goes with a --teacher of your own only. Received: {cfg.teacher_input!r} with "
            f"--teacher={cfg.teacher}"
        )
    if cfg.student_stem_stride not in (1, 2, 4):
        raise FlagError(f"--student_stem_stride must be 1, 2 or 4. Received: {cfg.student_stem_stride}")
    if 0 < cfg.student_width < 0.03125:
        raise FlagError(f"--student_width must be 0 or 0.03125 to 4.0. Received: {cfg.student_width}")
    if cfg.varies_student and cfg.teacher.startswith(APPLICATIONS):
        raise FlagError(
            "--student_width and --student_stem_stride go with a T of --backbone only; leave them out. Received: "
            f"{cfg.student_width:g} and {cfg.student_stem_stride} with --teacher={cfg.teacher}"
        )
    if not set(cfg.ratios) <= {"2", "4"} or len(set(cfg.ratios)) != len(cfg.ratios):
        raise FlagError(f"--ratios takes a list of 2 and 4. Received: {','.join(cfg.ratios)}")
    for ratio in map(int, cfg.ratios or (cfg.ratio,)):
        step = 4 * ratio if cfg.teacher == "train" else ratio
        if cfg.image_size % step:
            mend = "" if cfg.teacher == "train" else "; a T of another size needs a keras.layers.Resizing in front"
            raise FlagError(
                f"--image_size must be a multiple of {step} at ratio {ratio}{mend}. Received: {cfg.image_size}"
            )
    if cfg.mixed_precision != "float32" and cfg.teacher.startswith(APPLICATIONS):
        raise FlagError(
            f"--mixed_precision must be float32 with a teacher of your own. Received: {cfg.mixed_precision}"
        )
    if cfg.thumbnail_bits == 1:  # TensorFlow's fake quantisation starts at 2 bits
        raise FlagError("--thumbnail_bits must be 0 (no rounding) or 2 to 8. Received: 1")
    if cfg.mapping_epochs and (cfg.mapping_epochs >= cfg.epochs or cfg.w_fm <= 0):
        raise FlagError(
            "--mapping_epochs must be below --epochs and goes with --w_fm above 0. Received: "
            f"{cfg.mapping_epochs} with --epochs={cfg.epochs} --w_fm={cfg.w_fm:g}"
        )
    if cfg.w_cl + cfg.w_kd <= 0:
        raise FlagError("--w_cl and --w_kd can't both be 0: nothing would train the classifier. Received: 0 and 0")
