import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.common.forward import flat_inputs, forward_function
from qfleet.common.network_plan import network_plan
from qfleet.common.network_trial import try_factory
from qfleet.common.networks import (
    StackedNetwork,
    build_network,
    load_arrays,
    load_factory,
    to_arrays,
)
from qfleet.common.types import EnvironmentSpec

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
NORMALIZATIONS = ["none", "batch", "layer"]


def Mlp(  # as the module that it makes
    n_inputs: int, n_outputs: int, hidden_sizes: tuple[int, ...], normalization: str
) -> StackedNetwork:
    config = NetworkConfig(hidden_sizes=hidden_sizes, normalization=normalization)
    return StackedNetwork(network_plan(config, (n_inputs,), n_outputs))


def tensors(network: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    parameters = {n: p.detach().clone() for n, p in network.named_parameters()}
    return parameters, {n: b.detach().clone() for n, b in network.named_buffers()}


class CourseNetwork(nn.Module):
    """The same network, written as a course writes it."""

    def __init__(self, n_inputs: int, n_actions: int, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(n_inputs, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, n_actions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Tied(nn.Module):
    """A network with a tied parameter and a buffer that no state_dict holds."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.a = nn.Linear(n_inputs, n_inputs)
        self.b = nn.Linear(n_inputs, n_inputs)
        self.b.weight = self.a.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.last = nn.Linear(n_inputs, n_actions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.b(torch.relu(self.a(x))) * self.scale)


@pytest.fixture
def factories(monkeypatch):
    module = types.ModuleType("networks_under_test")
    module.course = CourseNetwork
    module.tied = Tied
    module.mlp = lambda n_inputs, n_actions: Mlp(n_inputs, n_actions, (16, 8), "batch")
    module.wrapped = lambda n_inputs, n_actions: nn.Sequential(
        *Mlp(n_inputs, n_actions, (16, 8), "batch")
    )
    module.no_module = lambda n_inputs, n_actions: "text"
    module.number = 5
    monkeypatch.setitem(sys.modules, "networks_under_test", module)


def test_mlp_batch_is_the_course_network_layer_by_layer():
    network = Mlp(4, 2, (128, 64), "batch")

    assert [type(layer) for layer in network] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
    ]
    assert [(i, tuple(p.shape)) for i, p in network.named_parameters()] == [
        ("0.weight", (128, 4)),
        ("1.weight", (128,)),
        ("1.bias", (128,)),
        ("3.weight", (64, 128)),
        ("4.weight", (64,)),
        ("4.bias", (64,)),
        ("6.weight", (2, 64)),
        ("6.bias", (2,)),
    ]
    # 512 + 8,192 + 128 weights, 2 biases, 2·(128 + 64) of BatchNorm.
    assert sum(p.numel() for p in network.parameters()) == 8_832 + 2 + 384
    norms = [layer for layer in network if isinstance(layer, nn.BatchNorm1d)]
    assert [(n.eps, n.momentum, n.track_running_stats) for n in norms] == [(1e-5, 0.1, True)] * 2


def test_mlp_without_normalization_has_biases_and_without_hidden_layers_is_linear():
    assert list(dict(Mlp(3, 2, (5,), "none").named_parameters())) == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]
    assert [type(layer) for layer in Mlp(3, 2, (), "batch")] == [nn.Linear]
    assert [type(layer) for layer in Mlp(3, 2, (5,), "layer")] == [
        nn.Linear,
        nn.LayerNorm,
        nn.ReLU,
        nn.Linear,
    ]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("hidden_sizes", [(), (7,), (16, 8)])
@pytest.mark.parametrize("training", [True, False])
def test_forward_function_equals_the_module_running_statistics_included(
    normalization, hidden_sizes, training
):
    torch.manual_seed(0)
    network = Mlp(4, 3, hidden_sizes, normalization)
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 1.0)
    forward = forward_function(network)
    parameters, buffers = tensors(network)
    network.train(training)

    for _ in range(3):
        x = torch.randn(6, 4)
        expected = network(x)
        actual = forward(parameters, buffers, x, training)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=0, atol=0)
    counts = [b.item() for n, b in buffers.items() if n.endswith("num_batches_tracked")]
    assert counts == ([3 if training else 0] * len(hidden_sizes) if counts else [])
    assert bool(counts) == (normalization == "batch" and bool(hidden_sizes))


def test_forward_function_leaves_its_parameters_alone():
    network = Mlp(4, 3, (8,), "batch")
    parameters, buffers = tensors(network)
    before = {name: tensor.clone() for name, tensor in parameters.items()}

    forward_function(network)(parameters, buffers, torch.randn(5, 4), True)

    for name, tensor in before.items():
        assert torch.equal(parameters[name], tensor)
    assert network[1].num_batches_tracked.item() == 0


def test_factory_forward_equals_mlp_forward_and_its_gradients(factories):
    built_in = Mlp(4, 2, (16, 8), "batch")
    config = NetworkConfig(factory="networks_under_test:wrapped")
    custom = build_network(config, SPEC, seed=3)
    assert not isinstance(custom, StackedNetwork)
    parameters, buffers = tensors(built_in)
    other_buffers = {name: b.clone() for name, b in buffers.items()}
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    other_leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    x = torch.randn(6, 4)

    for training in (True, False, True):
        a = forward_function(built_in)(leaves, buffers, x, training)
        b = forward_function(custom)(other_leaves, other_buffers, x, training)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        gradients = torch.autograd.grad(a.square().sum(), list(leaves.values()))
        others = torch.autograd.grad(b.square().sum(), list(other_leaves.values()))
        torch.testing.assert_close(gradients, others, rtol=1e-5, atol=1e-5)

    torch.testing.assert_close(buffers, other_buffers, rtol=0, atol=0)
    assert buffers["1.num_batches_tracked"].item() == 2


def test_factory_forward_that_scales_in_place_leaves_the_observations():
    class InPlace(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.div_(255.0))

    network = InPlace(4, 2)
    x = torch.full((3, 4), 255.0)

    forward_function(network)(dict(network.named_parameters()), {}, x, True)

    assert (x == 255.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4)])
def test_flat_inputs_are_rows_of_floats(dtype, shape):
    stored = torch.randint(2, (5, *shape)).to(dtype)
    inputs = flat_inputs(stored)
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == stored.reshape(5, -1).tolist()
    assert flat_inputs(stored, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("factory", [None, "networks_under_test:course"])
def test_build_network_has_one_output_per_action(factories, factory):
    config = NetworkConfig(factory=factory, kwargs={"width": 5} if factory else {})
    x = torch.randn(3, 4)
    assert build_network(config, SPEC, 1).eval()(x).shape == (3, SPEC.n_actions)


@pytest.mark.parametrize("factory", [None, "networks_under_test:course"])
def test_build_network_is_seeded_and_leaves_the_global_generator(factories, factory):
    config = NetworkConfig(factory=factory, kwargs={"width": 5} if factory else {})
    torch.manual_seed(123)
    expected_next = torch.rand(3)
    torch.manual_seed(123)

    first, same, other = (build_network(config, SPEC, seed) for seed in (1, 1, 2))

    assert torch.equal(torch.rand(3), expected_next)
    for a, b in zip(first.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )
    if factory:
        assert first.first.out_features == 5


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("networks_under_test:no_module", "must return a torch.nn.Module, got str"),
        ("networks_under_test:missing", "cannot be imported"),
        ("no_such_module_anywhere:course", "cannot be imported"),
        ("networks_under_test:number", "must be callable, got int"),
    ],
)
def test_build_network_unusable_factory_raises_config_error(factories, factory, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_network(NetworkConfig(factory=factory), SPEC, seed=0)

    assert "network.factory" in str(caught.value)
    assert factory in str(caught.value)


@pytest.mark.parametrize("path", ["no_colon", ":function"])
def test_load_factory_wrong_form_raises_config_error_with_its_key(path):
    with pytest.raises(ConfigError, match=r"env\.factory"):
        load_factory(path, "env.factory")


def test_load_factory_finds_modules_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "factory_in_cwd.py").write_text("def make():\n    return 'made'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])

    assert load_factory("factory_in_cwd:make", "env.factory")() == "made"
    monkeypatch.delitem(sys.modules, "factory_in_cwd")


@pytest.mark.parametrize("factory", [None, "course", "tied"])
def test_load_arrays_copies_what_to_arrays_gave(factories, factory):
    config = (
        NetworkConfig(hidden_sizes=(8,), normalization="batch")
        if factory is None
        else NetworkConfig(factory=f"networks_under_test:{factory}")
    )
    source, target = build_network(config, SPEC, 1), build_network(config, SPEC, 2)
    parameters, buffers = tensors(source)
    arrays = to_arrays({**parameters, **buffers})
    for array in arrays.values():
        array.flags.writeable = False  # as they come out of a message
    x = torch.randn(3, 4)

    load_arrays(target, arrays)

    assert torch.equal(target.eval()(x), source.eval()(x))
    assert list(arrays) == [n for n, _ in [*source.named_parameters(), *source.named_buffers()]]
    assert all(not np.shares_memory(arrays[n], p.detach()) for n, p in target.named_parameters())


def test_load_arrays_names_every_difference_and_changes_nothing():
    network = Mlp(4, 2, (8,), "none")
    before = network[0].bias.detach().clone()
    arrays = to_arrays(dict(network.named_parameters()))
    arrays["0.weight"] = np.zeros((8, 5), np.float32)
    arrays["0.bias"] = np.ones(8, np.float32)
    arrays["9.weight"] = arrays.pop("2.weight")

    with pytest.raises(CheckpointError, match=r"0\.weight, 2\.weight, 9\.weight$"):
        load_arrays(network, arrays)

    assert torch.equal(network[0].bias, before)


def test_to_arrays_are_copies():
    tensor = torch.zeros(3)

    array = to_arrays({"a": tensor})["a"]
    tensor.fill_(1.0)

    assert array.tolist() == [0.0, 0.0, 0.0]


def _of_two_and_five(n_inputs, n_actions, n_outputs=5):
    return nn.Sequential(nn.Linear(n_inputs, 8), nn.BatchNorm1d(8), nn.Linear(8, n_outputs))


class _Wrong(nn.Module):
    def __init__(self, n_inputs, n_actions, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(n_inputs, n_actions), kind

    def forward(self, x):
        if self.kind == "raises":
            return {}["price_table"]
        if self.kind == "exits":
            raise SystemExit(3)
        if self.kind == "tuple":
            return self.linear(x), x
        if self.kind == "detached":
            return self.linear(x).detach()
        if self.kind == "double":
            return self.linear(x).double()
        return self.linear(x) * float("nan")


def _linear_misread(n_inputs, n_actions):
    return nn.Linear(n_inputs + 1, n_actions)


def _without_parameters(n_inputs, n_actions):
    return nn.Flatten()


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("_of_two_and_five", {}, r"to Q-values \[2, 3\], .*; it returned \[2, 5\]"),
        (
            "_Wrong",
            {"kind": "raises"},
            r"raised KeyError: 'price_table' \(.*test_networks.py, line ",
        ),
        ("_Wrong", {"kind": "exits"}, "raised SystemExit: 3"),
        ("_Wrong", {"kind": "tuple"}, "it returned a tuple"),
        ("_Wrong", {"kind": "detached"}, "from which no gradient flows back"),
        ("_Wrong", {"kind": "double"}, "it returned torch.float64 values, not float32"),
        ("_Wrong", {"kind": "nan"}, "values that are not finite"),
        ("_Wrong", {"sort": 1}, "raised TypeError: .*called as function.n_inputs=4, n_actions=3,"),
        ("_linear_misread", {}, r"raised RuntimeError: .*tried on two observations \[2, 4\]"),
        ("_without_parameters", {}, "has no parameters"),
    ],
)
def test_try_factory_says_what_is_wrong(name, kwargs, words):
    config = NetworkConfig(factory=f"{__name__}:{name}", kwargs=kwargs)

    with pytest.raises(ConfigError, match=rf"network.factory='{__name__}:{name}' .*{words}"):
        try_factory(config, EnvironmentSpec("E-v0", (4,), "<f4", 3, None, None))


def test_try_factory_refuses_a_network_that_mixes_rows_in_eval_mode(factories):
    class MixesRows(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(dim=0))

    sys.modules["networks_under_test"].mixes = MixesRows
    config = NetworkConfig(factory="networks_under_test:mixes")
    with pytest.raises(ConfigError, match="whatever others are in its batch"):
        try_factory(config, EnvironmentSpec("E-v0", (4,), "<f4", 3, None, None))


def test_try_factory_takes_a_fitting_network_and_leaves_torchs_generator_alone():
    config = NetworkConfig(factory=f"{__name__}:_of_two_and_five", kwargs={"n_outputs": 3})
    before = torch.random.get_rng_state()

    try_factory(config, EnvironmentSpec("E-v0", (4,), "<f4", 3, None, None))

    assert torch.equal(torch.random.get_rng_state(), before)


def test_factory_whose_module_fails_at_import_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "net_that_fails.py").write_text("rate = {}['rate']\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(
        ConfigError, match=r"cannot be imported: KeyError: 'rate' .*fails\.py, line 1"
    ):
        load_factory("net_that_fails:make", "network.factory")
