"""stub"""

ARTIFACTS = ("thumbnet", "downscaler", "classifier", "teacher")
VARIANTS = ("float32", "float16", "dynamic", "int8", "int8_qat", "pruned", "clustered")


def file_name(artifact, variant):
    return f"{artifact}_{variant}.tflite"


def write(folder, variants, **kw):
    pass
