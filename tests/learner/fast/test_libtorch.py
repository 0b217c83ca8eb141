"""PyTorch's C++ library without its module: tensors made, shared, read and released."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest

from qfleet.learner.fast import libtorch as libtorch_module
from qfleet.learner.fast.libtorch import BlockLibrary, Libtorch, libtorch
from qfleet.learner.fast.package_spec import PackageError


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(3.5, np.float64),
        np.array(7, np.int64),
        np.zeros((0, 4), np.float32),
        np.ones((1, 5, 1), np.float32),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
    ],
    ids=["matrix", "scalar", "counter", "empty", "ones", "transposed"],
)
def test_copy_and_array_are_a_round_trip(array):
    torch = libtorch()
    tensor = torch.copy(array)
    got = torch.array(tensor)
    torch.release([tensor])
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(got, array)


def test_view_shares_memory_and_copy_does_not():
    torch, array = libtorch(), np.zeros(4, np.float32)
    view, copy = torch.view(array), torch.copy(array)
    array[:] = 5.0
    assert torch.address(view) == array.ctypes.data
    assert torch.array(view).tolist() == [5.0] * 4
    assert torch.array(copy).tolist() == [0.0] * 4
    torch.release([view, copy])


def test_view_of_a_strided_array_is_refused():
    with pytest.raises(ValueError, match="C-contiguous"):
        libtorch().view(np.zeros((4, 4), np.float32)[:, :2])


def test_again_keeps_the_tensor_until_the_last_reference_is_released():
    torch = libtorch()
    first = torch.copy(np.arange(4, dtype=np.float32))
    [second] = torch.again([first])
    assert torch.address(first) == torch.address(second)
    torch.release([first])
    assert torch.array(second).tolist() == [0.0, 1.0, 2.0, 3.0]
    torch.release([second])


def test_libtorch_without_torch_or_its_library_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(libtorch_module, "_LIBRARY", "libtorch_none.so")
    with pytest.raises(PackageError, match=r"libtorch_none\.so cannot be used alone"):
        Libtorch()
    monkeypatch.setattr(libtorch_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PackageError, match="torch is not installed"):
        Libtorch()


def test_libtorch_without_a_function_is_an_error(monkeypatch):
    monkeypatch.setattr(libtorch_module, "_SET_NUM_THREADS", "renamed")
    with pytest.raises(PackageError, match="cannot be used alone"):
        Libtorch()


def test_block_library_of_something_else_is_an_error(tmp_path):
    libtorch()
    path = tmp_path / "package.pt2"
    path.write_bytes(b"text")
    with pytest.raises(PackageError, match=r"cannot load package\.pt2"):
        BlockLibrary(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/model.so", b"text")
    with pytest.raises(PackageError, match=r"cannot load package\.pt2"):
        BlockLibrary(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/model.cpp", b"text")
    with pytest.raises(PackageError, match="0 shared objects"):
        BlockLibrary(path)


def test_torch_can_still_be_imported_behind_the_library():
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from qfleet.learner.fast.libtorch import libtorch\n"
        "tensor = libtorch().copy(np.arange(3, dtype=np.float32))\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "x = torch.randn(8, 8, requires_grad=True)\n"
        "(x @ x).sum().backward()\n"
        "assert x.grad.shape == (8, 8)\n"
        "assert libtorch().array(tensor).tolist() == [0.0, 1.0, 2.0]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
