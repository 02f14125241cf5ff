"""ThumbNet for Keras 3 and TensorFlow: classifiers that infer on one thumbnail.

`Config`, `train`, `load`, `Trainer`, `build_trainer` and `UserError` are the Python API; TensorFlow is imported when
one that needs it is first used. It is then told to compute by oneDNN on x86 CPUs, where the environment variable
`TF_ENABLE_ONEDNN_OPTS` doesn't say otherwise; imported before this package, it has chosen already.
"""

import importlib
import os
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thumbnet_tf import train
    from thumbnet_tf.api import load
    from thumbnet_tf.assembly import build_trainer
    from thumbnet_tf.config import Config, UserError
    from thumbnet_tf.trainer import Trainer

__all__ = ["Config", "Trainer", "UserError", "build_trainer", "load", "train"]

# TensorFlow does so by itself where the CPU has AVX512_VNNI or AMX; with AVX2 alone it pays, too (README, *oneDNN*)
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_HOMES = {"Config": "config", "UserError": "config", "Trainer": "trainer", "build_trainer": "assembly", "load": "api"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for (PEP 562)."""
    if name == "train":  # the module, which can be called: so it is the same whoever imports it first
        return importlib.import_module("thumbnet_tf.train")
    if name in _HOMES:
        return getattr(importlib.import_module(f"thumbnet_tf.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
