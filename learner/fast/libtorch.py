"""PyTorch's C++ library without its Python module: tensors, and a compiled block's machine code.

Called by `package_backend.py`. Importing torch takes three to four times as long as loading the
library, and a run that begins with a compiled block needs nothing else of it. Uses the C interface
that AOTInductor's packages are made for (`torch/csrc/inductor/aoti_torch/c/shim.h` and
`aoti_runtime/interface.h`), which PyTorch keeps stable across its versions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from ctypes import addressof, byref, c_char, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NewType, cast

import numpy as np

from qfleet.common.types import Array
from qfleet.learner.fast.package_spec import PackageError

Tensor = NewType("Tensor", int)
"""A reference to a tensor, to be released once; several may hold one tensor."""

_REFERENCE_BYTES = ctypes.sizeof(c_void_p)
_LIBRARY = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
_SET_NUM_THREADS = "_ZN2at15set_num_threadsEi"
"""`at::set_num_threads(int)`: of OpenMP, and of the matrix products' library."""
_DTYPES = ["float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"]
_CPU = 0
"""`aoti_torch_device_type_cpu()`."""


class Libtorch:
    """The library's functions for tensors on the CPU.

    Raises:
        PackageError: when the library, or a function of it, is not there.
    """

    def __init__(self) -> None:
        torch = importlib.util.find_spec("torch")
        if torch is None or torch.origin is None:
            raise PackageError("torch is not installed")
        path = Path(torch.origin).parent / "lib" / _LIBRARY
        try:
            # These calls take less than a microsecond: `PyDLL` keeps the interpreter's lock for
            # them. Given up and asked for again each time, it would go to another thread, often.
            library = ctypes.PyDLL(str(path))
            self._from_blob = library.aoti_torch_create_tensor_from_blob
            self._clone = library.aoti_torch_clone
            self._new_reference = library.aoti_torch_new_tensor_handle
            self._release = library.aoti_torch_delete_tensor_object
            self._data = library.aoti_torch_get_data_ptr
            self._strides = library.aoti_torch_get_strides
            self._sizes = library.aoti_torch_get_sizes
            self._dim = library.aoti_torch_get_dim
            self._dtype = library.aoti_torch_get_dtype
            self._set_num_threads = getattr(library, _SET_NUM_THREADS)
            codes = {name: getattr(library, f"aoti_torch_dtype_{name}")() for name in _DTYPES}
        except (OSError, AttributeError) as error:
            raise PackageError(f"{_LIBRARY} cannot be used alone: {error}") from error
        self._codes = {np.dtype(name): code for name, code in codes.items()}
        self._dtypes = {code: dtype for dtype, code in self._codes.items()}
        self._from_blob.argtypes = [
            *(c_void_p, c_int64, c_void_p, c_void_p, c_int64),
            *(c_int32, c_int32, c_int32, c_void_p),
        ]
        for function in (self._clone, self._new_reference, self._data, self._strides):
            function.argtypes = [c_void_p, c_void_p]
        for function in (self._sizes, self._dim, self._dtype):
            function.argtypes = [c_void_p, c_void_p]
        self._release.argtypes = [c_void_p]
        self._set_num_threads.argtypes = [c_int32]
        self._set_num_threads.restype = None

    def set_num_threads(self, n_threads: int) -> None:
        """As `torch.set_num_threads`."""
        self._set_num_threads(n_threads)

    def view(self, array: Array) -> Tensor:
        """A tensor in `array`'s memory, which must outlive it; `array` is C-contiguous.

        Raises:
            PackageError: when it is of a dtype that the library does not know.
        """
        if not array.flags.c_contiguous:
            raise ValueError("the array must be C-contiguous")
        if array.dtype not in self._codes:
            raise PackageError(f"PyTorch's library is not given arrays of {array.dtype}")
        shape = (c_int64 * array.ndim)(*array.shape)
        strides = (c_int64 * array.ndim)(*(n // array.itemsize for n in array.strides))
        found = c_void_p()
        _check(
            self._from_blob(
                *(array.ctypes.data, array.ndim, shape, strides, 0),
                *(self._codes[array.dtype], _CPU, 0, byref(found)),
            )
        )
        return _tensor(found)

    def copy(self, array: Array) -> Tensor:
        """A tensor with memory of its own; raises as `view`."""
        contiguous = np.asarray(array, order="C")
        view, found = self.view(contiguous), c_void_p()
        _check(self._clone(view, byref(found)))
        self.release([view])
        return _tensor(found)

    def again(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Further references to the same tensors."""
        found = (c_void_p * len(tensors))()
        address, new_reference = addressof(found), self._new_reference
        for tensor in tensors:  # a learner's every call goes through here
            _check(new_reference(tensor, address))
            address += _REFERENCE_BYTES
        return cast("list[Tensor]", list(found))

    def release(self, tensors: Iterable[Tensor]) -> None:
        """Give up references; the last one frees a tensor."""
        for tensor in tensors:
            _check(self._release(tensor))

    def address(self, tensor: Tensor) -> int:
        """Where its first element is."""
        found = c_void_p()
        _check(self._data(tensor, byref(found)))
        return found.value or 0

    def read(self, tensor: Tensor, target: Array) -> None:
        """Copy a contiguous tensor of `target`'s size and dtype into `target`."""
        memory: Any = (c_char * target.nbytes).from_address(self.address(tensor))
        target[...] = np.frombuffer(memory, target.dtype).reshape(target.shape)

    def array(self, tensor: Tensor) -> Array:
        """A copy as a NumPy array.

        Raises:
            PackageError: when it is not contiguous or of a dtype that no network of ours has.
        """
        dim, code = c_int64(), c_int32()
        sizes, strides = c_void_p(), c_void_p()
        _check(self._dim(tensor, byref(dim)))
        _check(self._dtype(tensor, byref(code)))
        _check(self._sizes(tensor, byref(sizes)))
        _check(self._strides(tensor, byref(strides)))
        shape = _integers(sizes, dim.value)
        dtype = self._dtypes.get(code.value)
        if dtype is None:
            raise PackageError(f"a tensor has torch's dtype number {code.value}")
        found = np.empty(shape, dtype)
        wanted = [n // dtype.itemsize for n in found.strides]
        given = _integers(strides, dim.value)
        if found.size and any(
            size > 1 and a != b for size, a, b in zip(shape, wanted, given, strict=True)
        ):
            raise PackageError(f"a tensor {shape} has strides {given}")
        if found.size:
            self.read(tensor, found)
        return found


class BlockLibrary:
    """The machine code of one package.

    Raises:
        PackageError: when the file is no package, or its code cannot be loaded.
    """

    def __init__(self, package: Path) -> None:
        try:
            with tempfile.NamedTemporaryFile(suffix=".so") as copy:
                copy.write(_machine_code(package))
                copy.flush()
                library = ctypes.CDLL(copy.name)  # mapped, so that the name may go
        except (OSError, zipfile.BadZipFile) as error:
            raise PackageError(f"cannot load {package.name}: {error}") from error
        self._last_error = library.AOTInductorGetLastError
        self._last_error.restype = c_char_p
        self._run = library.AOTInductorModelContainerRunSingleThreaded
        self._run.argtypes = [
            *(c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_void_p),
        ]
        self._container = c_void_p()
        create = library.AOTInductorModelContainerCreateWithDevice
        self._check(create(byref(self._container), c_size_t(1), b"cpu", None))
        self.n_inputs = self._count(library.AOTInductorModelContainerGetNumInputs)
        self.n_outputs = self._count(library.AOTInductorModelContainerGetNumOutputs)
        self._outputs = (c_void_p * self.n_outputs)()
        self._input_array = c_void_p * self.n_inputs

    def _count(self, ask: Any) -> int:
        found = c_size_t()
        self._check(ask(self._container, byref(found)))
        return found.value

    def _check(self, code: int) -> None:
        if code != 0:
            reason = self._last_error() or b"no reason given"
            raise PackageError(f"a compiled block failed: {reason.decode(errors='replace')}")

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """One call; takes over the references `inputs` and hands out those of the results.

        Raises:
            ValueError: when their number is not the package's.
            PackageError: when the code reports a failure.
        """
        if len(inputs) != self.n_inputs:
            raise ValueError(f"the package takes {self.n_inputs} tensors, got {len(inputs)}")
        given, outputs = self._input_array(*inputs), self._outputs
        n_inputs, n_outputs = self.n_inputs, self.n_outputs
        self._check(self._run(self._container, given, n_inputs, outputs, n_outputs, None, None))
        return cast("list[Tensor]", list(outputs))


@cache
def libtorch() -> Libtorch:
    """The library of this process, loaded on first use.

    Raises:
        PackageError: see `Libtorch`.
    """
    return Libtorch()


def _machine_code(package: Path) -> bytes:
    """The shared object in a package."""
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        if len(names) != 1:
            raise zipfile.BadZipFile(f"it holds {len(names)} shared objects")
        return archive.read(names[0])


def _integers(address: c_void_p, n: int) -> list[int]:
    return list((c_int64 * n).from_address(address.value)) if n and address.value else []


def _tensor(found: c_void_p) -> Tensor:
    assert found.value is not None, "a call that succeeded returned no tensor"
    return Tensor(found.value)


def _check(code: int) -> None:
    if code != 0:
        raise PackageError("PyTorch's library refused a tensor; its reason is on standard error")
