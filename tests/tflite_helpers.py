"""What tests of TFLite files share: LiteRT's answers, Keras' answers, a file's operators and its metadata."""

import contextlib
import os
import struct

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from flatbuffers.table import Table
from tensorflow.lite.python import schema_py_generated as schema

from thumbnet_tf import tflite


@contextlib.contextmanager
def silent():
    """Asserts that nothing goes to stderr, not even from C++."""
    read, write = os.pipe()
    stderr = os.dup(2)
    os.dup2(write, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        os.close(stderr)
    assert said == b""


def infer(content: bytes, images: np.ndarray) -> np.ndarray:
    """Returns a file's answers to images, one after the other."""
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner(tflite.SIGNATURE)
    (source,) = runner.get_input_details()
    return np.concatenate([next(iter(runner(**{source: image[None]}).values())) for image in images])


def probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    logits = model(images.astype(np.float32), training=False)["logits"]
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def thumbnails(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images.astype(np.float32), training=False))


def operators(content: bytes) -> list[int]:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


def normalization(content: bytes, side: str) -> tuple[float, float] | None:
    """Returns mean and std that a file's metadata give for its only `input` or `output`, or None if they don't."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    entry = next(entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    data = model.buffers[entry.buffer].data.tobytes()

    def follow(table: Table, slot: int, vector: bool = False) -> Table | None:
        offset = table.Offset(4 + 2 * slot)
        if not offset:
            return None
        return Table(data, table.Indirect(table.Vector(offset) if vector else table.Pos + offset))

    graph = follow(Table(data, int.from_bytes(data[:4], "little")), 3, vector=True)
    unit = follow(follow(graph, {"input": 2, "output": 3}[side], vector=True), 4, vector=True)
    if unit is None:
        return None
    options = follow(unit, 1)
    mean, std = (struct.unpack_from("<f", data, options.Vector(options.Offset(4 + 2 * slot)))[0] for slot in (0, 1))
    return mean, std
