"""What a lockstep run computes with is decided once, and written down."""

from __future__ import annotations

import pytest

from qfleet.common.errors import ConfigError
from qfleet.learner.fast.package_cache import PackageCache, cache_directory
from qfleet.learner.fast.package_spec import PROOF_SUFFIX, PackageSpec
from qfleet.run.resolution import check_and_resolve
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QFLEET_CACHE", str(tmp_path / "cache"))


def config(**changes):
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("cartpole", [], {"runtime": "local", "learner.device": "cpu", **overrides})


def put_package(wanted):
    """A finished package of this run's block, as far as the cache can tell."""
    from qfleet.common.networks import build_network

    spec, resolved = check_and_resolve(wanted)
    parameters = dict(build_network(resolved.network, spec, 0).named_parameters())
    description = PackageSpec(run_plans(resolved).learner, spec).describe(parameters, {})

    def build(path):
        path.write_bytes(b"code")
        path.with_suffix(PROOF_SUFFIX).write_bytes(b"proof")

    return PackageCache(cache_directory()).get_or_build(description, build)


def test_lockstep_takes_the_package_that_is_there_and_only_that():
    put_package(config(network__hidden_sizes=[7]))
    assert check_and_resolve(config())[1].learner.compile == "off"

    package = put_package(config())
    for wanted in (config(), config(runtime="ray", run__schedule="lockstep")):
        assert check_and_resolve(wanted)[1].learner.compile == "required"

    package.write_bytes(b"damaged")
    assert check_and_resolve(config())[1].learner.compile == "off"


@pytest.mark.parametrize("mode", ["off", "required"])
def test_lockstep_that_says_its_path_keeps_it_whatever_is_there(mode):
    put_package(config())
    assert check_and_resolve(config(learner__compile=mode))[1].learner.compile == mode


def test_requests_too_large_for_a_message_are_refused_before_the_start():
    asked = {"learner.batch_size": 8_000, "learner.updates_per_call": 25}
    too_large = load_config("cartpole-pixels", [], asked)
    with pytest.raises(ConfigError, match=r"learner\.updates_per_call.*25 x batch_size 8000"):
        check_and_resolve(too_large)


def test_asynchronous_run_leaves_its_path_open():
    put_package(config())
    assert check_and_resolve(config(runtime="ray"))[1].learner.compile == "auto"


def test_lockstep_writes_down_the_device(monkeypatch):
    import torch

    monkeypatch.setattr("qfleet.run.resolution.nvidia_gpus", lambda: 1)
    for sees_it, decided in ((True, ("cuda", "required")), (False, ("cpu", "off"))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda sees_it=sees_it: sees_it)
        learner = check_and_resolve(config(learner__device="auto"))[1].learner
        assert (learner.device, learner.compile) == decided


def test_custom_network_on_a_gpu_is_eager_unless_asked(monkeypatch, tmp_path):
    import torch

    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def make(n_inputs, n_actions):\n"
        "    return nn.Linear(n_inputs, n_actions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("qfleet.run.resolution.nvidia_gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    learner = check_and_resolve(config(learner__device="auto", network__factory="nets:make"))[1]
    assert (learner.learner.device, learner.learner.compile) == ("cuda", "off")


def test_custom_network_finds_its_package(monkeypatch, tmp_path):
    (tmp_path / "nets2.py").write_text(
        "from torch import nn\n"
        "def make(n_inputs, n_actions):\n"
        "    return nn.Linear(n_inputs, n_actions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = config(network__factory="nets2:make")
    assert check_and_resolve(wanted)[1].learner.compile == "off"
    put_package(wanted)
    assert check_and_resolve(wanted)[1].learner.compile == "required"


def test_memory_is_that_of_this_host_unless_a_cluster_holds_the_replay(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    too_large = config(runtime="ray", replay__capacity=10**11, actors__count=1, learner__num_gpus=0)
    with pytest.raises(ConfigError, match=r"replay\.capacity.*GiB of memory"):
        check_and_resolve(too_large)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert check_and_resolve(too_large)[1].replay.capacity == 10**11
