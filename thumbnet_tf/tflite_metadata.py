"""Metadata in TFLite files: what goes in and comes out, and the classes' names.

A buffer `TFLITE_METADATA` of the file is itself a flatbuffer; the labels are a file in a zip archive behind the model.
Image classifiers such as MediaPipe's read both. Source of the format:
https://github.com/tensorflow/tflite-support/blob/master/tensorflow_lite_support/metadata/metadata_schema.fbs; its own
Python writer doesn't work beside TensorFlow 2.21.

All files take a pixel's byte p as it is. MediaPipe and the Task library feed a uint8 tensor so, whatever stands here.
The format's own rule, which Android Studio's generated code follows, is f = (p - mean) / std, then, where the tensor is
quantised, f / scale + zero point: so mean and std undo the tensor's scale and zero point.
"""

import io
import struct
import zipfile
from collections.abc import Sequence

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from thumbnet_tf.config import UserError

LABELS = "labels.txt"

_BUFFER = b"TFLITE_METADATA"
_MIN_PARSER_VERSION = "1.0.0"  # no field used here is newer
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the archive's date: the same model gives the same file


def add(content: bytes, name: str, description: str, labels: Sequence[str] = ()) -> bytes:
    """Adds metadata to a file made by `tflite.convert`.

    Args:
        content: the TFLite file; one input, an image, and one output, an image or C probabilities.
        name: the model's name, for readers of the file.
        description: what the model does, in a sentence.
        labels: names of the C classes in the order of the probabilities; none for an image output.

    Returns:
        The file with metadata and `labels.txt`.

    Raises:
        UserError: when the content is no TFLite file, or a label isn't one line.
        ValueError: when the labels don't match the output.
    """
    model = _parsed(content)
    graph = model.subgraphs[0]
    source, result = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    count = 0 if len(result.shape) == 4 else int(result.shape[-1])
    if len(labels) != count:
        raise ValueError(f"the output needs {count} labels. Received: {len(labels)}")
    if odd := [label for label in labels if label.splitlines() != [label]]:
        raise UserError(f"a class name must be one line of text; rename the class. Received: {odd[0]!r}")
    signature = model.signatureDefs[0]
    names = [signature.inputs[0].name.decode(), signature.outputs[0].name.decode()]

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(_metadata(name, description, names, source, result), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _BUFFER, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [kept for kept in model.metadata or () if kept.name != _BUFFER] + [entry]
    builder = _Builder(len(content) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    file = io.BytesIO()
    file.write(builder.Output())
    if labels:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(zipfile.ZipInfo(LABELS, _EPOCH), "\n".join(labels))
    return file.getvalue()


def _parsed(content: bytes) -> schema.ModelT:
    if content[4:8] == b"TFL3":
        try:
            return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        except (struct.error, ValueError, IndexError, TypeError):  # offsets that point outside
            pass
    raise UserError(f"a whole TFLite file is expected; export it again. Received: {len(content)} other bytes")


class _Builder(flatbuffers.Builder):
    """Places byte vectors, the tensors' data, on multiples of 16 bytes, as TFLite's schema asks for."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
        return super().StartVector(elemSize, numElems, max(alignment, 16) if elemSize == 1 else alignment)


def _metadata(
    name: str, description: str, names: Sequence[str], source: schema.TensorT, result: schema.TensorT
) -> bytes:
    """Returns the flatbuffer; slots and numbers are those of the schema's fields and union members."""
    builder = flatbuffers.Builder(1024)
    scale, zero_point = _quantization(source) or (1.0, 0)
    taken = _tensor(builder, names[0], _pixels(source), _image(builder, (zero_point, 1 / scale)))
    if len(result.shape) != 4:
        text = f"probabilities of {result.shape[-1]} classes"
        given = _tensor(builder, names[1], text, _labelled(builder))
    elif _quantization(result):  # what turns its numbers into pixels has no words here
        text = f"{_pixels(result)}: the bytes as they are, whatever scale the tensor states"
        given = _tensor(builder, names[1], text, _image(builder, None))
    else:
        given = _tensor(builder, names[1], _pixels(result), _image(builder, (0, 1)))
    inputs, outputs = _offsets(builder, [taken]), _offsets(builder, [given])
    graph = _table(builder, 7, {2: inputs, 3: outputs})
    fields = {0: builder.CreateString(name), 1: builder.CreateString(description), 3: _offsets(builder, [graph])}
    fields[7] = builder.CreateString(_MIN_PARSER_VERSION)
    builder.Finish(_table(builder, 8, fields), b"M001")
    return bytes(builder.Output())


def _quantization(tensor: schema.TensorT) -> tuple[float, int] | None:
    """Returns a tensor's scale and zero point, or None if it has none."""
    found = tensor.quantization
    if found is None or found.scale is None or not len(found.scale):
        return None
    return float(found.scale[0]), int(found.zeroPoint[0])


def _pixels(tensor: schema.TensorT) -> str:
    return f"RGB image of {tensor.shape[2]} x {tensor.shape[1]} pixels, 0 to 255"


def _tensor(builder: flatbuffers.Builder, name: str, description: str, fields: dict[int, int]) -> int:
    """Writes a TensorMetadata of a name, a description and the fields of what it holds."""
    texts = {0: builder.CreateString(name), 1: builder.CreateString(description)}
    return _table(builder, 7, texts | fields)


def _image(builder: flatbuffers.Builder, normalization: tuple[float, float] | None) -> dict[int, int]:
    """Writes what a TensorMetadata says of an image, with mean and std."""
    properties = _table(builder, 2, {}, numbers={0: 1})  # ImageProperties, RGB
    fields = {3: _table(builder, 3, {1: properties}, numbers={0: 2})}
    if normalization is not None:
        mean, std = (builder.CreateNumpyVector(np.array([value], np.float32)) for value in normalization)
        unit = _table(builder, 2, {1: _table(builder, 2, {0: mean, 1: std})}, numbers={0: 1})  # NormalizationOptions
        fields[4] = _offsets(builder, [unit])
    return fields


def _labelled(builder: flatbuffers.Builder) -> dict[int, int]:
    """Writes what a TensorMetadata says of probabilities: that their labels lie in a file."""
    file = _table(builder, 4, {0: builder.CreateString(LABELS)}, numbers={2: 2})  # TENSOR_AXIS_LABELS
    properties = _table(builder, 3, {1: _table(builder, 0, {})}, numbers={0: 1})  # FeatureProperties
    return {3: properties, 6: _offsets(builder, [file])}


def _table(builder: flatbuffers.Builder, size: int, offsets: dict[int, int], numbers: dict[int, int] | None = None):
    """Writes a table of `size` slots that holds offsets of what was written before, and one-byte numbers."""
    builder.StartObject(size)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in (numbers or {}).items():
        builder.PrependInt8Slot(slot, number, 0)
    return builder.EndObject()


def _offsets(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()
