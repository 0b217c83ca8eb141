import pytest
import torch

from qfleet.learner.optimizers import (
    OPTIMIZERS,
    Hyperparameters,
    clip_by_global_norm,
    initial_state,
)

TORCH_OPTIMIZERS = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "radam": lambda parameters, rate: torch.optim.RAdam(parameters, lr=rate),
}


def hyperparameters(rate: float, dtype: torch.dtype = torch.float64) -> Hyperparameters:
    return Hyperparameters(*(torch.tensor(v, dtype=dtype) for v in (rate, 0.9, 0.0, 1.0, 1.0)))


def some_tensors(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (5,), (), (2, 2, 2)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


@pytest.mark.parametrize("kind", ["sgd", "adam", "radam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_optimizer_equals_torch_over_50_steps(kind, dtype, tolerance):
    parameters = some_tensors(0, dtype)
    theirs = [p.clone().requires_grad_() for p in parameters]
    optimizer = TORCH_OPTIMIZERS[kind](theirs, 0.01)
    state = initial_state(kind, parameters)
    hyper = hyperparameters(0.01, dtype)

    for step in range(50):
        gradients = some_tensors(step + 1, dtype)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        parameters, state = OPTIMIZERS[kind](parameters, gradients, state, hyper)

        for mine, other in zip(parameters, theirs, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=tolerance, atol=tolerance)

    assert state.step.item() == 50
    assert all(p.dtype == dtype for p in [*parameters, *state.first, *state.second])


@pytest.mark.parametrize("kind", ["adam", "radam"])
def test_optimizer_float32_displacement_has_float32_precision_in_the_first_steps(kind):
    """1 − 0.999ᵗ in float32 would lose half of the digits, and radam its threshold with them."""
    single, double = some_tensors(0, torch.float32), some_tensors(0, torch.float64)
    single = [torch.zeros_like(p) for p in single]
    double = [torch.zeros_like(p) for p in double]
    state, exact = initial_state(kind, single), initial_state(kind, double)

    for step in range(12):
        gradients = some_tensors(step + 1, torch.float32)
        single, state = OPTIMIZERS[kind](
            single, gradients, state, hyperparameters(0.25, torch.float32)
        )
        double, exact = OPTIMIZERS[kind](
            double, [g.double() for g in gradients], exact, hyperparameters(0.25)
        )

        for mine, other in zip(single, double, strict=True):
            torch.testing.assert_close(mine.double(), other, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adam", "radam"])
def test_optimizer_leaves_its_arguments_alone(kind):
    parameters, gradients = some_tensors(0, torch.float32), some_tensors(1, torch.float32)
    state = initial_state(kind, parameters)
    hyper = hyperparameters(0.1, torch.float32)

    OPTIMIZERS[kind](parameters, gradients, state, hyper)

    for actual, seed in ((parameters, 0), (gradients, 1)):
        for tensor, original in zip(actual, some_tensors(seed, torch.float32), strict=True):
            assert torch.equal(tensor, original)
    assert state.step.item() == 0
    assert all(not t.any() for t in [*state.first, *state.second])


def test_sgd_two_steps_by_hand():
    parameters, state = [torch.tensor([1.0])], initial_state("sgd", [torch.tensor([1.0])])
    hyper = hyperparameters(0.5, torch.float32)

    parameters, state = OPTIMIZERS["sgd"](parameters, [torch.tensor([2.0])], state, hyper)
    assert parameters[0].item() == 0.0  # v = 2
    parameters, state = OPTIMIZERS["sgd"](parameters, [torch.tensor([1.0])], state, hyper)
    assert parameters[0].item() == pytest.approx(-1.4)  # v = 0.9·2 + 1 = 2.8


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 4.0, 1_000.0])
def test_clip_equals_torch(max_norm):
    gradients = some_tensors(3, torch.float64)
    parameters = [torch.zeros_like(g).requires_grad_() for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()

    expected_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clipped, norm = clip_by_global_norm(gradients, torch.tensor(max_norm, dtype=torch.float64))

    torch.testing.assert_close(norm, expected_norm, rtol=1e-14, atol=0)
    for mine, parameter in zip(clipped, parameters, strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-14, atol=0)


def test_clip_without_a_maximum_reports_the_norm_alone():
    gradients = [torch.tensor([3.0]), torch.tensor([[4.0]])]

    same, norm = clip_by_global_norm(gradients, None)

    assert norm.item() == 5.0
    assert all(a is b for a, b in zip(same, gradients, strict=True))
