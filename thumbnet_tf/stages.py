"""The methods: which downscaler, which initial weights and which losses each one trains with.

The comparison with T and the ablation of the losses are the rows of `METHODS`. What trains, evaluates and exports
branches on a row's fields, on no method's name but `original`; only what is shown first goes by names.
"""

import dataclasses

from thumbnet_tf.config import Config, FlagError


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        downscaler: what makes the network's input: none (full image), bicubic, area, or learned (E). A network
            of thumbnails starts from T's weights.
        losses: terms of the training loss, of cl, kd, fm, mm; empty trains nothing.
        about: what the row shows, for help and tables.
    """

    downscaler: str
    losses: tuple[str, ...]
    about: str


ORIGINAL = "original"
TAUGHT = ("kd", "fm")  # terms that compare with outputs of T
DECODED = ("fm",)  # terms that compare a map of T with what D makes of one of S
MAPPING = ("fm", "mm")  # terms that act in the mapping epochs too

METHODS: dict[str, Method] = {
    ORIGINAL: Method("none", ("cl",), "the teacher T on full images"),
    "direct": Method("bicubic", (), "T's weights on bicubic thumbnails, not trained"),
    "area": Method("area", ("cl",), "area thumbnails, CL"),
    "bicubic": Method("bicubic", ("cl",), "bicubic thumbnails, CL"),
    "bicubic_kd": Method("bicubic", ("cl", "kd"), "bicubic thumbnails, CL + KD"),
    "supervised": Method("learned", ("cl",), "learned thumbnails, CL"),
    "supervised_kd": Method("learned", ("cl", "kd"), "learned thumbnails, CL + KD"),
    "supervised_kd_fm": Method("learned", ("cl", "kd", "fm"), "learned thumbnails, CL + KD + FM"),
    "thumbnet": Method("learned", ("cl", "kd", "fm", "mm"), "learned thumbnails, CL + KD + FM + MM"),
    "slim": Method("none", ("cl", "kd"), "a slimmer network (--slim_width) on full images, CL + KD"),
    "no_mm": Method("learned", ("cl", "kd", "fm"), "thumbnet without MM (the same as supervised_kd_fm)"),
    "no_kd": Method("learned", ("cl", "fm", "mm"), "thumbnet without KD"),
    "no_fm": Method("learned", ("cl", "kd", "mm"), "thumbnet without FM"),
}


def students(cfg: Config) -> tuple[str, ...]:
    """Returns the methods that a run compares with its teacher, in the order given.

    Raises:
        FlagError: on an unknown or repeated method, or one that the weights leave nothing to learn from.
    """
    names = tuple(name for name in cfg.methods if name != ORIGINAL)
    allowed = [name for name in METHODS if name != ORIGINAL]
    for name in names:
        if name not in allowed:
            raise FlagError(f"--methods takes a comma-separated list of {', '.join(allowed)}. Received: {name!r}")
        if names.count(name) > 1:
            raise FlagError(f"--methods must name a method once. Received: {name!r} {names.count(name)} times")
        if METHODS[name].losses and not {"cl", "kd"} & loss_weights(name, cfg).keys():
            raise FlagError(
                f"--methods={name} needs a classification or distillation loss; raise --w_cl or --w_kd. "
                f"Received: --w_cl={cfg.w_cl} --w_kd={cfg.w_kd}"
            )
    return names


def loss_weights(method: str, cfg: Config) -> dict[str, float]:
    """Returns the weights of the loss terms that are on: options of `cfg`, for the losses in the method's row."""
    weights = {"cl": cfg.w_cl, "kd": cfg.w_kd, "fm": cfg.w_fm, "mm": cfg.w_mm}
    on = METHODS[method].losses
    if method == ORIGINAL:
        return {"cl": 1.0}
    return {name: weights[name] for name in on if weights[name] > 0}
