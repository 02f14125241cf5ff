"""An export and servers of it, started once for all tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from serving_helpers import grpc_server, server_process

from thumbnet_tf.export import Options, export


@pytest.fixture(scope="session")
def exported(tiny_run, tmp_path_factory) -> Path:
    """Returns the folder of a run's exported version 1; T and S are exported beside it."""
    options = Options(
        run_dir=str(tiny_run.path),
        out=str(tmp_path_factory.mktemp("served")),
        also=("teacher", "classifier"),
        variants=("float32", "int8"),
        fail_under=("int8:100",),  # eight test images: one is 12 points
    )
    folder, _ = export(options)
    return folder


@pytest.fixture(scope="session")
def ask(exported) -> Callable[..., dict[str, np.ndarray]]:
    """Returns a function that calls a signature of the SavedModel directly, without a server."""
    model = tf.saved_model.load(str(exported))

    def call(signature: str, values) -> dict[str, np.ndarray]:
        return {key: value.numpy() for key, value in model.signatures[signature](tf.constant(values)).items()}

    return call


@pytest.fixture(scope="session")
def grpc_address(exported) -> Iterator[str]:
    """Serves the export as versions 1 (label stable) and 2 (canary)."""
    with grpc_server({1: exported, 2: exported}, {"stable": 1, "canary": 2}) as address:
        yield address


@pytest.fixture(scope="session")
def kserve_address(exported) -> Iterator[str]:
    """Serves the export by KServe."""
    pytest.importorskip("kserve", reason="KServe isn't installed; `pip install -e '.[serving]'` does it")
    with server_process("kserve", exported) as (address, _):
        yield address
