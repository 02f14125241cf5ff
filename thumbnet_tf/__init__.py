"""ThumbNet for Keras 3 and TensorFlow: classifiers that infer on one thumbnail."""

import os

# TensorFlow's own start-up lines would bury ours; an outer setting wins
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
