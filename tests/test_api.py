"""Policies without Ray or torch, evaluation and environments by run, id or section."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import qfleet
from qfleet.api import evaluate, load_params, load_policy, load_run_config, make_env
from qfleet.common.config import EnvConfig, NetworkConfig
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.common.networks import build_network, to_arrays
from qfleet.common.params import encode_safetensors
from qfleet.common.types import EnvironmentSpec
from qfleet.run_files.run_directory import RunDirectory
from qfleet.settings.config import Config
from qfleet.settings.config_loading import dump_yaml

SOURCE = Path(__file__).resolve().parents[1] / "src"
SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
NETWORK = NetworkConfig(hidden_sizes=(32, 16), normalization="batch")


@pytest.fixture
def network():
    """A network whose BatchNorm statistics are not the initial ones."""
    module = build_network(NETWORK, SPEC, seed=3)
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1)
    return module.eval()


def params(network, config=NETWORK):
    return encode_safetensors(to_arrays(dict(network.state_dict())), config, SPEC)


@pytest.fixture
def run(tmp_path, monkeypatch, network):
    """A run with a `best/` and one checkpoint; its environment has a longer pole."""
    monkeypatch.chdir(tmp_path)
    config = Config(network=NETWORK, env=EnvConfig(kwargs={"sutton_barto_reward": True}))
    with RunDirectory.create(config, str(tmp_path / "run")) as directory:
        directory.write_config(dump_yaml(config))
        files = {"params.safetensors": [params(network)]}
        directory.write_best(learner_step=5, generation=1, files=files, manifest={})
        directory.write_checkpoint(learner_step=9, generation=1, files=files, manifest={}, keep=3)
        yield directory.path


def observations(n=50):
    return np.random.default_rng(0).normal(0, 2, (n, 4)).astype(np.float32)


def test_load_policy_answers_as_the_torch_network(run, network):
    policy = load_policy(run)
    batch = observations()
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(policy.q_values(batch), expected, rtol=1e-5, atol=1e-5)
    assert policy.q_values(batch).dtype == np.float32
    assert policy.q_values(batch[0]).shape == (1, 2)
    np.testing.assert_array_equal(policy.act(batch), expected.argmax(axis=1))
    assert policy.act(batch[0]) == int(expected[0].argmax())
    assert type(policy.act(batch[0])) is int
    assert policy.spec == SPEC


@pytest.mark.parametrize("what", ["", "best", "latest", "latest/params.safetensors", None])
def test_load_policy_takes_a_run_a_checkpoint_a_file_or_the_latest(run, what):
    argument = None if what is None else run / what
    policy = load_policy(argument)
    expected = "ckpt-000000000009-1" if what and "latest" in what else "best"
    assert policy.path.resolve().parent.name == expected


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (1, 1, 4), (2, 2, 4)])
def test_policy_refuses_an_observation_of_another_shape(run, shape):
    with pytest.raises(ValueError, match=r"float32 \[4\] or a batch"):
        load_policy(run).act(np.zeros(shape, np.float32))


def test_load_policy_of_no_run_is_refused(run):
    with pytest.raises(ConfigError, match="nowhere is no run"):
        load_policy("nowhere")


@pytest.mark.parametrize("place", ["best", "latest"])
def test_load_policy_of_damaged_parameters_is_refused(run, place):
    file = run / place / "params.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"params\.safetensors"):
        load_policy(run / place)


def test_load_params_are_named_as_in_torch(run, network):
    arrays = load_params(run)
    assert set(arrays) >= {"0.weight", "1.running_mean", "1.running_var"}
    for name, tensor in network.state_dict().items():
        if name in arrays:
            np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_load_policy_needs_neither_torch_nor_ray_nor_an_environment(run, network, tmp_path):
    batch = observations(8)
    np.save(tmp_path / "batch.npy", batch)
    code = """
        import sys
        import numpy as np
        import qfleet
        policy = qfleet.load_policy(sys.argv[1])
        q_values = policy.q_values(np.load("batch.npy"))
        heavy = {"torch", "ray", "gymnasium", "pygame", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
        np.save("q_values.npy", q_values)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(run)],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=60,
    )
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "q_values.npy"), expected, rtol=1e-5, atol=1e-5)


def test_load_policy_of_a_custom_network_uses_its_factory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n"
        "def make(n_inputs, n_actions):\n"
        "    return nn.Sequential(nn.Linear(n_inputs, 5), nn.Tanh(), nn.Linear(5, n_actions))\n"
    )
    config = NetworkConfig(factory="my_net:make")
    network = build_network(config, SPEC, seed=1).eval()
    (tmp_path / "params.safetensors").write_bytes(params(network, config))
    policy = load_policy(tmp_path / "params.safetensors")
    batch = observations()
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(policy.q_values(batch), expected, rtol=1e-6, atol=1e-6)


def test_load_run_config_is_what_the_run_was_trained_with(run):
    config = load_run_config(run)
    assert config.network == NETWORK
    assert yaml.safe_load((run / "config.yaml").read_text())["env"]["kwargs"] == config.env.kwargs


# Environments


def test_make_env_of_a_run_has_the_runs_settings(run):
    env = make_env(run)
    try:
        env.reset(seed=1)
        _, reward, *_ = env.step(0)
    finally:
        env.close()
    assert reward == 0.0  # sutton_barto_reward: 0 per step, −1 at the end


@pytest.mark.parametrize("argument", ["CartPole-v1", EnvConfig()])
def test_make_env_of_an_id_or_a_section(argument):
    env = make_env(argument)
    try:
        observation, _ = env.reset(seed=1)
        _, reward, *_ = env.step(0)
    finally:
        env.close()
    assert (observation.shape, observation.dtype) == ((4,), np.float32)
    assert reward == 1.0


def test_make_env_that_renders_gives_frames(run):
    env = make_env(run, render_mode="rgb_array")
    try:
        env.reset(seed=1)
        frame = env.render()
    finally:
        env.close()
    assert frame.ndim == 3
    assert frame.dtype == np.uint8


def test_make_env_of_an_unknown_id_suggests_one():
    with pytest.raises(ConfigError, match=r"did you mean.*CartPole"):
        make_env("CartPol-v1")


# Scores


def test_evaluate_is_the_same_for_the_same_seed_only(run):
    policy = load_policy(run)
    returns = evaluate(policy, "CartPole-v1", episodes=6, seed=7)
    assert (returns.shape, returns.dtype) == ((6,), np.float64)
    np.testing.assert_array_equal(returns, evaluate(policy, "CartPole-v1", episodes=6, seed=7))
    assert (returns != evaluate(policy, "CartPole-v1", episodes=6, seed=8)).any()
    assert (returns >= 8).all()


def test_evaluate_in_a_runs_environment_uses_its_rewards(run):
    returns = evaluate(load_policy(run), run, episodes=3, seed=7)
    assert set(returns) <= {-1.0, 0.0}


def test_evaluate_in_an_environment_of_another_shape_is_refused(run):
    with pytest.raises(ConfigError, match=r"\[2\] and 3 actions, the policy wants \[4\] and 2"):
        evaluate(load_policy(run), "MountainCar-v0", episodes=1)


def test_params_metadata_name_the_activation(network):
    data = params(network)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert json.loads(header["network"])["activation"] == "relu"
    own = params(network, NetworkConfig(factory="torch.nn:Linear"))
    header = json.loads(own[8 : 8 + int.from_bytes(own[:8], "little")])["__metadata__"]
    assert json.loads(header["network"])["activation"] is None


def test_load_policy_of_a_file_without_an_array_of_its_network_is_a_checkpoint_error(
    tmp_path, network
):
    arrays = to_arrays(dict(network.state_dict()))
    del arrays["0.weight"]
    path = tmp_path / "params.safetensors"
    path.write_bytes(encode_safetensors(arrays, NETWORK, SPEC))
    with pytest.raises(CheckpointError, match=r"params\.safetensors lacks the array '0\.weight'"):
        load_policy(path)


def test_errors_raised_on_purpose_are_names_of_the_package():
    kin = ["CheckpointError", "ConfigError", "NonFiniteError", "ResourcesError", "RoleLostError"]
    for name in kin:
        assert name in qfleet.__all__
        assert issubclass(getattr(qfleet, name), qfleet.QfleetError)


def test_wrong_arguments_name_the_right_ones(run):
    with pytest.raises(qfleet.ConfigError, match=r"got str; write qfleet\.Config\.preset"):
        qfleet.train("cartpole")
    with pytest.raises(qfleet.ConfigError, match="evaluate takes a policy first, got PosixPath"):
        qfleet.evaluate(run, run)
