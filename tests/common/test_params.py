import hashlib
import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import CheckpointError
from qfleet.common.params import decode_safetensors, encode_safetensors, params_sha256
from qfleet.common.types import EnvironmentSpec

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
NETWORK = NetworkConfig(hidden_sizes=(3,), normalization="batch")


def arrays() -> dict[str, np.ndarray]:
    return {
        "0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "1.running_mean": np.array([-0.5, 0.0, 2.0], np.float32),
        "1.num_batches_tracked": np.array(7),
    }


def changed(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    return {**arrays(), name: array}


def test_params_sha256_is_the_documented_digest():
    expected = hashlib.sha256()
    for name, array in sorted(arrays().items()):
        expected.update(f"{name}|{array.dtype.str}|{list(array.shape)}|".encode())
        expected.update(array.tobytes())

    assert params_sha256(arrays()) == expected.hexdigest()


def test_params_sha256_ignores_dict_order_byte_order_and_memory_layout():
    digest = params_sha256(arrays())

    assert params_sha256(dict(reversed(arrays().items()))) == digest
    assert params_sha256(changed("0.weight", arrays()["0.weight"].astype(">f4"))) == digest
    assert params_sha256(changed("0.weight", np.asfortranarray(arrays()["0.weight"]))) == digest


@pytest.mark.parametrize(
    "other",
    [
        {("0.bias" if name == "0.weight" else name): array for name, array in arrays().items()},
        changed("0.weight", arrays()["0.weight"].view(np.int32)),
        changed("0.weight", arrays()["0.weight"].reshape(4, 3)),
        changed("1.num_batches_tracked", np.array([7])),
        changed("extra", np.zeros(0, np.float32)),
        {},
    ],
)
def test_params_sha256_name_dtype_shape_and_presence_count(other):
    assert params_sha256(other) != params_sha256(arrays())


def test_params_sha256_every_byte_counts():
    digests = {params_sha256(arrays())}
    for name, array in arrays().items():
        for index in range(array.nbytes):
            data = bytearray(array.tobytes())
            data[index] ^= 1
            flipped = np.frombuffer(bytes(data), array.dtype).reshape(array.shape)
            digests.add(params_sha256(changed(name, flipped)))

    assert len(digests) == 1 + sum(array.nbytes for array in arrays().values())


def test_safetensors_round_trip_is_exact():
    decoded, network, spec = decode_safetensors(encode_safetensors(arrays(), NETWORK, SPEC))

    assert params_sha256(decoded) == params_sha256(arrays())
    assert decoded["1.num_batches_tracked"].shape == ()
    assert (network, spec) == (NETWORK, SPEC)


def test_safetensors_file_loads_without_qfleet(tmp_path):
    path = tmp_path / "params.safetensors"
    path.write_bytes(encode_safetensors(arrays(), NETWORK, SPEC))

    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    np.testing.assert_equal(loaded, arrays())
    assert metadata["format"] == "qfleet-params-1"
    assert json.loads(metadata["network"]) == {
        "kind": "mlp",
        "hidden_sizes": [3],
        "normalization": "batch",
        "dueling": False,
        "noisy": False,
        "distribution": "none",
        "atoms": None,
        "value_min": None,
        "value_max": None,
        "factory": None,
        "kwargs": {},
        "activation": "relu",
        "n_inputs": 4,
        "n_actions": 2,
    }
    assert json.loads(metadata["environment"])["env_id"] == "CartPole-v1"


def with_metadata(**changes: str | None) -> bytes:
    metadata = {"network": "{}", "environment": "{}", **changes}
    return safetensors.numpy.save(
        arrays(), metadata={k: v for k, v in metadata.items() if v is not None}
    )


GOOD_NETWORK = json.dumps(
    {**NETWORK.model_dump(mode="json"), "activation": "relu", "n_inputs": 4, "n_actions": 2}
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk" * 10,
        struct.pack("<Q", 2**40) + b"{}",
        encode_safetensors(arrays(), NETWORK, SPEC)[:-1],
        safetensors.numpy.save(arrays()),
        with_metadata(network=None),
        with_metadata(environment=None),
        with_metadata(network="[]"),
        with_metadata(network="no json"),
        with_metadata(network="{}", environment=SPEC.to_json()),
        with_metadata(network=GOOD_NETWORK, environment="{}"),
        with_metadata(network=GOOD_NETWORK, environment='{"observation_shape": [4]}'),
        with_metadata(
            network=GOOD_NETWORK.replace('"mlp"', '"unheard of"'), environment=SPEC.to_json()
        ),
    ],
)
def test_decode_safetensors_anything_else_is_a_checkpoint_error(data):
    with pytest.raises(CheckpointError, match=r"params\.safetensors is not readable"):
        decode_safetensors(data)
