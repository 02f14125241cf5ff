"""Runs exported models one image at a time, in a process that knows nothing of this package.

  python -P parity_worker.py JOB.json

It is started by `parity.py` as a script, refuses to import `thumbnet_tf`, and needs numpy and the runtime of the job
only: `ai_edge_litert` for TFLite, `tensorflow` for SavedModels. The job names the runtime and the models, with their
threads, inputs and where the outputs go. A line with a number says how many answers came since the last.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK = 64  # images a model runs before the next model's turn, so that a disturbance hits all alike
WARM_UP = 5  # calls before each block, not measured
_LOADED: dict[str, Any] = {}  # SavedModels by their folders: one has several signatures, and takes long to load


def main(job: dict[str, Any]) -> None:
    """Runs every model of a job over all its inputs and writes `<output>.npy` and `<output>.ms.npy`.

    An empty file stands for what a model isn't to be shown: its answer and its milliseconds stay 0.
    """
    load = {"tflite": _tflite, "saved_model": _saved_model}[job["runtime"]]
    models = [load(spec) for spec in job["models"]]
    inputs = [_inputs(spec["input"]) for spec in job["models"]]
    counts = [len(values) for values in inputs]
    outputs: list[np.ndarray] = []  # on the disk: those of a large split wouldn't fit into memory
    for spec, model, values in zip(job["models"], models, inputs, strict=True):
        first = model(next(value for value in values if len(value)))
        shape = (len(values), *first.shape)
        outputs.append(np.lib.format.open_memmap(f"{spec['output']}.npy", "w+", first.dtype, shape))
    times = [np.zeros(count) for count in counts]
    for start in range(0, max(counts), BLOCK):
        for index, model in enumerate(models):
            places = range(start, min(start + BLOCK, counts[index]))
            shown = [position for position in places if len(inputs[index][position])]
            for _ in range(WARM_UP if shown else 0):
                model(inputs[index][shown[0]])
            for position in shown:
                value = inputs[index][position]
                before = time.perf_counter()
                answer = model(value)
                times[index][position] = 1000 * (time.perf_counter() - before)
                outputs[index][position] = answer
            print(len(places), flush=True)
    for spec, written, measured in zip(job["models"], outputs, times, strict=True):
        written.flush()
        np.save(f"{spec['output']}.ms.npy", measured)


def _inputs(path: str) -> Any:
    """Returns a sequence of images uint8 (H, W, 3), or of encoded files (bytes)."""
    if path.endswith(".npy"):
        return np.load(path, mmap_mode="r")
    offsets = np.load(f"{path}.offsets")
    data = np.memmap(path, np.uint8, "r")
    return _Files(data, offsets)


class _Files:
    """Encoded files that lie one behind the other."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self._data, self._offsets = data, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._data[self._offsets[index] : self._offsets[index + 1]].tobytes()


def _tflite(spec: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=spec["path"], num_threads=spec["threads"])
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = result["quantization"]
    dequantised = result["dtype"] == np.uint8 and len(result["shape"]) == 2  # thumbnails are bytes, scores aren't

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        answer = interpreter.get_tensor(result["index"])[0]
        return (answer.astype(np.float32) - zero) * scale if dequantised else answer

    return run


def _saved_model(spec: dict[str, Any]) -> Callable[[Any], np.ndarray]:
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != spec["threads"]:  # of the process, set before its use
        tf.config.threading.set_intra_op_parallelism_threads(spec["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(spec["threads"])
    if spec["path"] not in _LOADED:
        _LOADED[spec["path"]] = tf.saved_model.load(spec["path"])
    function = _LOADED[spec["path"]].signatures[spec["signature"]]
    (name,) = function.structured_input_signature[1]

    def run(value: Any) -> np.ndarray:
        # an array of NumPy's would drop the zero bytes that a file ends with
        one = [value] if isinstance(value, bytes) else np.array(value)[None]
        return function(**{name: tf.constant(one)})[spec["result"]].numpy()[0]

    return run


if __name__ == "__main__":
    sys.modules["thumbnet_tf"] = None  # what is exported must run without it
    with open(sys.argv[1]) as file:
        main(json.load(file))
