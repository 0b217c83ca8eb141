"""A network's arrays as bytes on disk and as one fingerprint.

Called by checkpoints, the summary and `load_policy`. `params.safetensors` holds the arrays under
PyTorch module names; its metadata says how to rebuild the network without qfleet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import CheckpointError
from qfleet.common.types import Array, EnvironmentSpec


def params_sha256(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of parameters and buffers."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        # np.ascontiguousarray would make a scalar (num_batches_tracked) one-dimensional.
        array = np.asarray(arrays[name], order="C")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}|{little.dtype.str}|{list(array.shape)}|".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def encode_safetensors(
    arrays: Mapping[str, Array], network: NetworkConfig, spec: EnvironmentSpec
) -> bytes:
    """The arrays as a safetensors file with metadata keys `network` and `environment`."""
    from safetensors.numpy import save

    metadata = {
        "format": "qfleet-params-1",
        "network": json.dumps(
            {
                **network.model_dump(mode="json"),
                "activation": None if network.factory else "relu",
                "n_inputs": spec.n_inputs,
                "n_actions": spec.n_actions,
            }
        ),
        "environment": spec.to_json(),
    }
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return bytes(save(contiguous, metadata=metadata))


def decode_safetensors(data: bytes) -> tuple[dict[str, Array], NetworkConfig, EnvironmentSpec]:
    """The inverse of `encode_safetensors`.

    Raises:
        CheckpointError: when the bytes are not such a file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        header_bytes = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_bytes])["__metadata__"]
        fields = json.loads(metadata["network"])
        for derived in ("activation", "n_inputs", "n_actions"):
            fields.pop(derived)
        network = NetworkConfig.model_validate(fields)
        spec = EnvironmentSpec.from_json(metadata["environment"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"params.safetensors is not readable: {error}") from error
    return dict(arrays), network, spec
