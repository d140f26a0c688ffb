"""Conversion of Keras's ResNet-50, as packaged for TensorFlow.js, to the parameter names of torchvision.

The weights are those that He et al. published in 2015, so unlike in torchvision's network the first 1 x 1 convolution
of each stage has the stride of 2; :func:`immunebench.metrics.networks.keras_classifier` builds it that way. All other
differences are folded into the weights: the kernels' axes, biases before batch normalisation, its epsilon, and inputs
in BGR order of which a mean was subtracted and which were not divided by a standard deviation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Arrays = Mapping[str, NDArray[np.float32]]

#: Epsilon of batch normalisation in the Keras model, and in torchvision's.
_EPSILON, _TORCHVISION_EPSILON = 1e-3, 1e-5
#: The mean that Keras subtracts from pictures of 0 to 255, in RGB order.
_MEAN = (123.68, 116.779, 103.939)
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BLOCKS = (3, 4, 6, 3)


def arrays(read: Callable[[str], bytes]) -> dict[str, NDArray[np.float32]]:
    """Read the arrays of a model in the TensorFlow.js layout, by their Keras names.

    Parameters
    ----------
    read
        Returns the content of a file of the model's folder by its name.

    Raises
    ------
    OSError
        The weight files do not fit the manifest in ``model.json``.
    """
    import numpy as np

    found, start = {}, 0
    (group,) = json.loads(read("model.json"))["weightsManifest"]
    data = b"".join(read(name) for name in group["paths"])
    for row in group["weights"]:
        count = int(np.prod(row["shape"]))
        if row["dtype"] != "float32" or start + 4 * count > len(data):
            raise OSError(f"{row['name']} is not where the weights manifest says")
        found[row["name"]] = np.frombuffer(data, np.float32, count, start).reshape(row["shape"])
        start += 4 * count
    if start != len(data):
        raise OSError(f"{len(data) - start} bytes belong to no array")
    return found


def tensors(source: Arrays) -> dict[str, Tensor]:
    """Convert Keras's arrays to a state dict of torchvision's ResNet-50, for pictures normalised as in torchvision."""
    import numpy as np
    import torch

    found: dict[str, NDArray[Any]] = {}
    for (conv, norm), (kernel, moments) in _layers():
        found |= {
            f"{conv}.weight": source[f"{kernel}/kernel"].transpose(3, 2, 0, 1),
            f"{norm}.weight": source[f"{moments}/gamma"],
            f"{norm}.bias": source[f"{moments}/beta"],
            f"{norm}.running_mean": source[f"{moments}/moving_mean"] - source[f"{kernel}/bias"],
            f"{norm}.running_var": source[f"{moments}/moving_variance"] + (_EPSILON - _TORCHVISION_EPSILON),
            f"{norm}.num_batches_tracked": np.array(0),
        }
    # The first kernel was trained on x * 255 * deviation + (255 * mean - their mean), in BGR order. For the two rows at
    # a border the conversion is not exact, as zero padding is 0 in both normalisations.
    first = found["conv1.weight"][:, ::-1].astype(np.float64)
    shift = 255 * np.array(_IMAGENET_MEAN) - np.array(_MEAN)
    found["conv1.weight"] = first * 255 * np.array(_IMAGENET_DEVIATION)[:, None, None]
    found["bn1.running_mean"] = found["bn1.running_mean"] - (first.sum((2, 3)) @ shift)
    found["fc.weight"], found["fc.bias"] = source["fc1000/kernel"].T, source["fc1000/bias"]
    return {
        name: torch.tensor(np.ascontiguousarray(array), dtype=torch.int64 if array.ndim == 0 else torch.float32)
        for name, array in found.items()
    }


def _layers() -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Yield the names of each convolution and its normalisation in torchvision, and in Keras."""
    yield ("conv1", "bn1"), ("conv1", "bn_conv1")
    for stage, count in enumerate(_BLOCKS, 1):
        for block, letter in zip(range(count), "abcdef", strict=False):
            ours, theirs = f"layer{stage}.{block}", f"{stage + 1}{letter}_branch"
            for number, part in enumerate(("2a", "2b", "2c"), 1):
                yield (f"{ours}.conv{number}", f"{ours}.bn{number}"), (f"res{theirs}{part}", f"bn{theirs}{part}")
            if block == 0:
                yield (f"{ours}.downsample.0", f"{ours}.downsample.1"), (f"res{theirs}1", f"bn{theirs}1")
