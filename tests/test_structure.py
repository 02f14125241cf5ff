"""The shape of the package: imports run one way, files stay small, nothing heavy happens on import."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "thumbnet_tf"

# a module may import modules of lower layers only; mains may import each other
LAYERS = (
    {"options"},
    {"config_checks"},
    {"config"},
    {"stages"},
    {
        "progress",
        "preprocess",
        "losses",
        "initializers",
        "files",
        "costs",
        "memory",
        "flags",
        "demo_server",
        "parity_worker",
        "client_transport",
        "optimizers",
        "report_html",
        "stats",
    },
    {"csv_files", "graph", "jpeg"},
    {"trimming"},
    {"folding", "training_layers", "foreign"},
    {"applications", "backbones", "intake", "client_thumbnails", "frozen", "timing"},
    {"downscaler"},
    {"data.fine_detail", "data.store", "thumbnet", "tflite", "tflite_metadata", "twin"},
    {"benchmark_rivals", "fake_quant"},
    {"data.listing"},
    {"data.sources"},
    {"data.pipeline"},
    {"data"},
    {"trainer"},
    {"runs", "distribution"},
    {"checkpoints", "cache_files", "teachers"},
    {"teacher_cache", "teacher_check", "assembly"},
    {
        "loop",
        "compare",
        "publish",
        "serving",
        "warmup",
        "parity",
        "card",
        "peak_memory",
        "benchmark_report",
    },
    {"qat"},
    {"variants"},
    {
        "api",
        "evaluate",
        "gallery",
        "train",
        "predict",
        "plots",
        "export",
        "wire",
        "client",
        "demo",
        "benchmark",
        "benchmark_inference",
        "benchmark_training",
        "report",
        "report_data",
        "report_figures",
        "report_images",
        "report_sections",
    },
)


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def own_imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError("imports are absolute, so that this test sees them")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("thumbnet_tf"):
            base = node.module.removeprefix("thumbnet_tf").removeprefix(".")
            names = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            known = {name_of(path) for path in PACKAGE.rglob("*.py")}
            found |= {name if name in known else base for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("thumbnet_tf.") for a in node.names if a.name.startswith("thumbnet_tf.")}
    return found


def test_imports_run_one_way():
    layer = {name: index for index, names in enumerate(LAYERS) for name in names}
    top = len(LAYERS) - 1
    for name, tree in modules().items():
        if not name:
            continue
        assert name in layer, f"{name}: give it a place in LAYERS"
        for other in own_imports(tree):
            lower = layer[other] < layer[name] or layer[other] == layer[name] == top
            assert lower, f"{name} imports {other}"


def test_the_walk_sees_imports():
    assert {"config", "stages"} <= own_imports(modules()["runs"])
    assert "data.pipeline" in own_imports(modules()["train"])


def test_config_and_stages_know_no_tensorflow():
    code = "import sys, thumbnet_tf.stages; print([m for m in ('tensorflow', 'keras', 'absl') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_the_package_leaves_keras_alone():
    code = (
        "import os, sys, thumbnet_tf.client, thumbnet_tf.export, thumbnet_tf.train, thumbnet_tf.wire; "
        "print('tensorflow_model_optimization' in sys.modules, 'tf_keras' in sys.modules, "
        "os.environ.get('TF_USE_LEGACY_KERAS'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False False None"


def test_files_are_small_rooms_and_use_keras_by_its_name():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 320, path
        assert "tf.keras" not in text, path
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), f"{path}: assert in library code"


def test_only_the_trainer_trains_by_a_gradient_tape():
    homes = [name for name, tree in modules().items() if "GradientTape" in ast.dump(tree)]
    assert sorted(homes) == ["benchmark_rivals", "benchmark_training", "trainer"]  # the former two measure


def test_public_functions_say_what_they_do():
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}.{node.name}"
