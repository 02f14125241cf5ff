"""ThumbNet for Keras 3 and TensorFlow: classifiers that infer on one thumbnail."""
