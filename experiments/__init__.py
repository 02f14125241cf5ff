"""The experiments' commands, `python -m experiments.<name>` from the repository's root."""

import thumbnet_tf  # noqa: F401 - before TensorFlow, for which it chooses oneDNN
