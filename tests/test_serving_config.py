"""The server's configuration files are what the server's own messages can hold, and what the README says of them."""

import pathlib
import re

import pytest
import test_serving_docker
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from thumbnet_tf import intake

FOLDER = pathlib.Path(__file__).parent.parent / "saved_models"
README = (FOLDER / "README.md").read_text()
FILES = ("models.config", "batching.config", "monitoring.config", "kserve.yaml")


def message(name: str, fields: list[tuple]) -> type:
    """Makes the class of a message that `tensorflow-serving-api` leaves out, from (name, number, type, repeated)."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="stand_in", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    made = file.message_type.add(name=name)
    for field, number, kind, repeated in fields:
        field = made.field.add(name=field, number=number, label=3 if repeated else 1)
        if isinstance(kind, str):
            field.type, field.type_name = field.TYPE_MESSAGE, kind
        else:
            field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"stand_in.{name}"))


def test_models_config():
    config = text_format.Parse(
        (FOLDER / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    ).model_config_list
    assert [model.name for model in config.config] == ["thumbnet"]
    model = config.config[0]
    assert (model.base_path, model.model_platform) == ("/models/thumbnet", "tensorflow")
    loaded = list(model.model_version_policy.specific.versions)
    assert loaded and set(model.version_labels) == {"stable", "canary"}
    assert set(model.version_labels.values()) <= set(loaded), "a label may only name a loaded version"


def test_batching_config():
    """https://github.com/tensorflow/serving/blob/master/tensorflow_serving/servables/tensorflow/session_bundle_config.proto"""
    int64, boolean = descriptor_pb2.FieldDescriptorProto.TYPE_INT64, descriptor_pb2.FieldDescriptorProto.TYPE_BOOL
    wrapped = ".google.protobuf.Int64Value"
    parameters = message(
        "BatchingParameters",
        [
            ("max_batch_size", 1, wrapped, False),
            ("batch_timeout_micros", 2, wrapped, False),
            ("max_enqueued_batches", 3, wrapped, False),
            ("num_batch_threads", 4, wrapped, False),
            ("thread_pool_name", 5, ".google.protobuf.StringValue", False),
            ("allowed_batch_sizes", 6, int64, True),
            ("pad_variable_length_inputs", 7, boolean, False),
            # names and types as in TensorFlow Serving's saved_model_bundle_factory_test.cc; numbers are not in text
            ("enable_large_batch_splitting", 8, ".google.protobuf.BoolValue", False),
            ("max_execution_batch_size", 9, wrapped, False),
        ],
    )
    found = text_format.Parse((FOLDER / "batching.config").read_text(), parameters())
    assert found.max_batch_size.value == intake.MAX_IMAGES and found.batch_timeout_micros.value == 2000
    # without splitting a request of more images than a batch holds is refused
    assert found.enable_large_batch_splitting.value and found.max_execution_batch_size.value == 32
    assert found.num_batch_threads.value >= 1 and found.max_enqueued_batches.value >= found.num_batch_threads.value
    assert not found.allowed_batch_sizes or found.allowed_batch_sizes[-1] == found.max_execution_batch_size.value
    assert not found.pad_variable_length_inputs, "padding would change the images of `pixels`"


def test_monitoring_config():
    """https://github.com/tensorflow/serving/blob/master/tensorflow_serving/config/monitoring_config.proto"""
    fields = descriptor_pb2.FieldDescriptorProto
    prometheus = message(
        "PrometheusConfig", [("enable", 1, fields.TYPE_BOOL, False), ("path", 2, fields.TYPE_STRING, False)]
    )
    text = (FOLDER / "monitoring.config").read_text()
    outer = re.fullmatch(
        r"(?:#[^\n]*\n)*\n*prometheus_config \{(.*)\}\n", text, re.DOTALL
    )  # MonitoringConfig's only field
    found = text_format.Parse(outer[1], prometheus())
    assert found.enable and found.path == "/monitoring/prometheus/metrics"
    assert found.path in README


def known(model: type, fields: dict, where: str) -> None:
    """Checks that each field of an object, and of the objects of KServe in it, is one that KServe's model has."""
    kserve = pytest.importorskip("kserve", reason="KServe isn't installed; `pip install -e '.[serving]'` does it")
    names = {json: python for python, json in model.attribute_map.items()}
    for name, value in fields.items():
        assert name in names, f"{where}.{name} is none of KServe's: {sorted(names)}"
        kind = model.openapi_types[names[name]]
        inner = getattr(kserve, kind, None) or getattr(kserve.models, kind, None)
        if inner is not None:
            known(inner, value, f"{where}.{name}")
        elif kind in ("int", "str"):
            assert isinstance(value, {"int": int, "str": str}[kind]), f"{where}.{name} must be {kind}: {value!r}"


def test_kserve_yaml():
    kserve = pytest.importorskip("kserve", reason="KServe isn't installed; `pip install -e '.[serving]'` does it")
    service = yaml.safe_load((FOLDER / "kserve.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    known(kserve.V1beta1InferenceService, service, "InferenceService")
    predictor = service["spec"]["predictor"]
    assert 0 <= predictor["minReplicas"] < predictor["maxReplicas"]
    assert predictor["scaleMetric"] in ("cpu", "memory", "concurrency", "rps") and predictor["scaleTarget"] > 0
    assert predictor["model"]["modelFormat"]["name"] == "tensorflow"
    assert f"tensorflow/serving:{predictor['model']['runtimeVersion']} " in (FOLDER / "README.md").read_text()
    assert predictor["model"]["storageUri"].partition("://")[0] in ("pvc", "s3", "gs", "https")
    for kind in ("requests", "limits"):
        assert set(predictor["model"]["resources"][kind]) == {"cpu", "memory"}
    made = kserve.V1beta1PredictorSpec(
        model=kserve.V1beta1ModelSpec(
            model_format=kserve.V1beta1ModelFormat(**predictor["model"]["modelFormat"]),
            storage_uri=predictor["model"]["storageUri"],
        ),
        min_replicas=predictor["minReplicas"],
        max_replicas=predictor["maxReplicas"],
        scale_metric=predictor["scaleMetric"],
        scale_target=predictor["scaleTarget"],
        container_concurrency=predictor["containerConcurrency"],
    )
    assert made.to_dict()["scale_target"] == predictor["scaleTarget"]
    assert made.to_dict()["container_concurrency"] == predictor["containerConcurrency"] == predictor["scaleTarget"]


def test_the_readme_starts_the_server_as_the_docker_test_does():
    assert all(name in README for name in FILES)
    assert "--model_config_file=/models/models.config" in test_serving_docker.FLAGS
    assert not any(flag.startswith(("--cpus", "--name", "--memory")) for flag in test_serving_docker.FLAGS)
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", test_serving_docker.IMAGE), "the image must be pinned"
