"""The Android sample: what its Kotlin code takes for granted is what converted models and the evaluation crop are."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from run_helpers import CLASSES, IMAGE_SIZE, disc

from thumbnet_tf import tflite, tflite_metadata
from thumbnet_tf.config import Config

ROOT = Path(__file__).parent.parent / "experiments" / "android"
APP = ROOT / "app" / "src" / "main"
KOTLIN = APP / "java" / "thumbnet" / "sample"


def constants() -> dict[str, str]:
    """Returns the sample's `const val`s by name."""
    text = "".join(path.read_text() for path in sorted(KOTLIN.glob("*.kt")))
    return {name: value.strip('"') for name, value in re.findall(r'const val (\w+) = ("[^"]*"|[\d.]+)', text)}


@pytest.fixture(scope="module")
def models(tiny_run) -> dict[str, bytes]:
    """Returns the tiny run's E + S as `float32`, with an output of floats, and as `int8`, with one of bytes."""
    shipped = tiny_run.load_model("thumbnet", "shipped")
    photos = [disc(label, seed, IMAGE_SIZE)[:, :IMAGE_SIZE] for label in range(len(CLASSES)) for seed in range(4)]
    files = {
        "float32": tflite.convert(shipped, "thumbnet", "float32"),
        "int8": tflite.convert(shipped, "thumbnet", "int8", calibration=photos),
    }
    return {variant: tflite_metadata.add(content, "thumbnet", "", CLASSES) for variant, content in files.items()}


def open_model(content: bytes) -> Interpreter:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    return interpreter


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_names_types_and_shapes_are_the_models(models, variant):
    kotlin, interpreter = constants(), open_model(models[variant])
    runner = interpreter.get_signature_runner(kotlin["SIGNATURE"])
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    assert list(inputs) == [kotlin["INPUT_NAME"]] and list(outputs) == [kotlin["OUTPUT_NAME"]]
    taken, given = inputs[kotlin["INPUT_NAME"]], outputs[kotlin["OUTPUT_NAME"]]
    assert taken["dtype"] == np.uint8 and taken["shape"].tolist() == [1, IMAGE_SIZE, IMAGE_SIZE, 3]
    assert given["dtype"] == {"float32": np.float32, "int8": np.uint8}[variant]
    assert given["shape"].tolist() == [1, len(CLASSES)]


def test_bytes_become_probabilities_as_the_sample_computes_them(models):
    kotlin, found = constants(), {}
    images = [disc(label, 5, IMAGE_SIZE)[:, :IMAGE_SIZE] for label in range(len(CLASSES))]
    for variant, content in models.items():
        runner = open_model(content).get_signature_runner(kotlin["SIGNATURE"])
        answers = [runner(**{kotlin["INPUT_NAME"]: image[None]})[kotlin["OUTPUT_NAME"]][0] for image in images]
        if variant == "int8":  # Classifier.probabilities()
            scale, zero_point = runner.get_output_details()[kotlin["OUTPUT_NAME"]]["quantization"]
            answers = [scale * (answer.astype(int) - zero_point) for answer in answers]
        np.testing.assert_allclose(np.sum(answers, axis=1), 1, atol=0.02)
        found[variant] = np.array(answers)
    assert np.ptp(found["float32"]) > 0.2
    np.testing.assert_allclose(found["int8"], found["float32"], atol=0.1)


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_labels_are_where_the_sample_looks_for_them(models, variant):
    content = models[variant]
    end = content.rindex(b"PK\x05\x06")  # ModelFile.labelsIn, step by step
    number = lambda at: int.from_bytes(content[at : at + 4], "little")  # noqa: E731
    directory = end - number(end + 12)
    first = directory - number(end + 16) + number(directory + 42)
    assert content[first : first + 4] == b"PK\x03\x04"
    with zipfile.ZipFile(io.BytesIO(content[first:])) as archive:
        entry = archive.getinfo(constants()["LABELS_FILE"])
        # ZipInputStream reads forward only: it can't know where a stored entry ends whose size stands behind it
        assert not entry.flag_bits & 8 or entry.compress_type == zipfile.ZIP_DEFLATED
        assert archive.read(entry).decode().splitlines() == list(CLASSES)


def test_the_crop_is_that_of_photographs():
    assert float(constants()["CROP_FRACTION"]) == Config(dataset="folder:photos").resolved().crop_fraction


def test_files_name_each_other_rightly():
    name, variant = constants()["MODEL_FILE"].removesuffix(".tflite").split("_", 1)
    assert (name, variant in tflite.VARIANTS) == ("thumbnet", True)
    package = re.search(r'namespace = "([\w.]+)"', (ROOT / "app" / "build.gradle.kts").read_text())[1]
    assert all(path.read_text().startswith(f"package {package}\n") for path in KOTLIN.glob("*.kt"))
    assert APP / "java" / Path(*package.split(".")) == KOTLIN
    activity = re.search(r'android:name="\.(\w+)"', (APP / "AndroidManifest.xml").read_text())[1]
    assert f"class {activity} : ComponentActivity()" in (KOTLIN / f"{activity}.kt").read_text()
    readme = (ROOT / "README.md").read_text()
    assert f"cp <export>/tflite/{constants()['MODEL_FILE']} experiments/android/app/src/main/assets/" in readme
    build = (ROOT / "build.gradle.kts").read_text() + (ROOT / "app" / "build.gradle.kts").read_text()
    for version in re.findall(r'(?:version "|:)(\d[\d.]+)"', build):
        assert version in readme, version
