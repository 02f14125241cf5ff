"""What a device does in the split deployment: image in, thumbnail file out, by the TFLite downscaler alone."""

import json
import pathlib
import threading

import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from thumbnet_tf import jpeg, preprocess
from thumbnet_tf.config import UserError


class TfliteDownscaler:
    """Turns images into thumbnail files, from any thread.

    Attributes:
        version: of the export that it lies in, whose S has learned to read its thumbnails.
        most_bytes: that a thumbnail's file may have.
    """

    def __init__(self, path: str, file_format: str, quality: int) -> None:
        """Loads the model.

        Args:
            path: `<export>/tflite/downscaler_*.tflite`; `<export>/manifest.json` says how to crop.
            file_format: `png` (exact) or `jpeg` (smaller, but the server sees other pixels).
            quality: of JPEG, 1 to 100.

        Raises:
            UserError: when the file or the manifest is missing, broken or of another kind.
        """
        manifest = pathlib.Path(path).absolute().parent.parent / "manifest.json"
        try:
            export = json.loads(manifest.read_text(encoding="utf-8"))
            facts, self.version = export["preprocessing"], int(export["version"])
            self._size, small = int(facts["image_size"]), int(facts["thumbnail_size"])
            self._crop_fraction = float(facts["crop_fraction"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "--downscaler must lie in the folder tflite of an export, whose manifest.json says how to crop. "
                f"Received: {path} ({manifest}: {type(error).__name__})"
            ) from None
        try:
            self._interpreter = Interpreter(model_path=path)
            self._run = self._interpreter.get_signature_runner("serving_default")
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--downscaler can't be read as a TFLite model. Received: {path} ({reason})") from None
        found = [
            {name: tuple(int(n) for n in tensor["shape"]) for name, tensor in side.items()}
            for side in (self._run.get_input_details(), self._run.get_output_details())
        ]
        if found != [{"image": (1, self._size, self._size, 3)}, {"thumbnail": (1, small, small, 3)}]:
            raise UserError(
                f"--downscaler must turn an image of {self._size} px into a thumbnail of {small} px, as its manifest "
                f"says; give a downscaler_*.tflite. Received: {path}, which turns {found[0]} into {found[1]}"
            )
        self.most_bytes = 3 * small**2 + 4096  # uncompressed, and what lies around it
        self._format, self._quality = file_format, quality
        self._lock = threading.Lock()  # an interpreter does one thing at a time

    def __call__(self, image: tf.Tensor) -> bytes:
        """Returns an image's thumbnail as a file.

        Args:
            image: uint8 (H, W, 3) in [0, 255], of any size.

        Returns:
            A PNG or JPEG file of s x s pixels.
        """
        pixels = preprocess.eval_crop(image, self._size, self._crop_fraction).numpy()
        with self._lock:
            thumbnail = self._run(image=pixels[None])["thumbnail"][0]
        if self._format == "png":
            return tf.io.encode_png(thumbnail).numpy()
        return jpeg.encode(thumbnail, self._quality).numpy()
