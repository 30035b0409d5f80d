"""CUDA C compiled at run time and launched on torch's streams, with the libraries that torch's CUDA wheel brings.

NVRTC compiles to machine code of the device itself, so that no driver need read a newer compiler's PTX; the driver's
interface launches it. Both are called through ctypes: no compiler, header or package beyond torch's own is needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import struct
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
MAX_SHARED_OPTIN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
REPORTS = 4096
PARAMETER_END, PARAMETER_BUFFER, PARAMETER_SIZE = 0, 1, 2  # CU_LAUNCH_PARAM_…: the arguments in one block of memory


@cache
def is_available() -> bool:
    """Whether kernels can be compiled here: Linux and a torch built for CUDA that sees a device."""
    return sys.platform == "linux" and torch.version.cuda is not None and torch.cuda.is_available()


class Module:
    """The kernels of one source, compiled for one device."""

    def __init__(self, source: str, options: Sequence[str], device: int) -> None:
        """Compile; raises `RuntimeError` with the compiler's log, or if a library is missing."""
        major, minor = torch.cuda.get_device_capability(device)
        image = compiled(source, [*options, f"--gpu-architecture=sm_{major}{minor}"])
        self.device = device
        self._driver = _driver()
        self._handle = ctypes.c_void_p()
        self._functions: dict[str, ctypes.c_void_p] = {}
        with torch.cuda.device(device):
            self._enter()
            self._check(self._driver.cuModuleLoadData(ctypes.byref(self._handle), image))

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, shared: int, layout: str, *arguments: torch.Tensor | Any
    ) -> None:
        """Start kernel `name` on torch's current stream with `shared` bytes of dynamic shared memory.

        Arguments are numbers, tensors, which must be contiguous and on the device, or None for a null pointer; `layout`
        gives their types as the `struct` module does, "P" a pointer, with the alignment of C, which is CUDA's too.
        """
        values = (each.data_ptr() if isinstance(each, torch.Tensor) else each or 0 for each in arguments)
        block = ctypes.create_string_buffer(struct.pack(layout, *values))
        length = ctypes.c_size_t(struct.calcsize(layout))
        extra = (ctypes.c_void_p * 5)(
            PARAMETER_BUFFER, ctypes.addressof(block), PARAMETER_SIZE, ctypes.addressof(length), PARAMETER_END
        )
        if torch.cuda.current_device() == self.device:  # entering a device that is current costs as much as a launch
            self._start(name, grid, threads, shared, extra)
        else:
            with torch.cuda.device(self.device):
                self._start(name, grid, threads, shared, extra)

    def _start(self, name: str, grid: tuple[int, int], threads: int, shared: int, extra: Any) -> None:
        self._enter()
        stream = torch._C._cuda_getCurrentRawStream(self.device)  # type: ignore[attr-defined,unused-ignore]
        function = self._function(name)
        self._check(self._driver.cuLaunchKernel(function, *grid, 1, threads, 1, 1, shared, stream, None, extra))

    def _function(self, name: str) -> ctypes.c_void_p:
        if name not in self._functions:
            function = ctypes.c_void_p()
            self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), self._handle, name.encode()))
            limit = shared_memory(self.device)
            self._check(self._driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, limit))
            self._functions[name] = function
        return self._functions[name]

    def _enter(self) -> None:
        """Make torch's context of the device current in this thread; threads of autograd may have none yet."""
        current, wanted = ctypes.c_void_p(), _context(self.device)
        self._check(self._driver.cuCtxGetCurrent(ctypes.byref(current)))
        if current.value != wanted.value:
            self._check(self._driver.cuCtxSetCurrent(wanted))

    def _check(self, code: int) -> None:
        _check(self._driver, code)


class Reports:
    """Words on the host in which a kernel leaves its launch's number if it has something to tell.

    Nothing is copied, cleared or allocated for a launch. A word serves again after as many launches as there are words.
    """

    def __init__(self) -> None:
        words = torch.zeros(REPORTS, dtype=torch.int32, pin_memory=True)
        self._address, self._words = words.data_ptr(), words.numpy()
        self._numbers, self._latest = itertools.count(1), 0

    def number(self) -> int:
        """The next launch's number."""
        self._latest = next(self._numbers)
        return self._latest

    def address(self, number: int) -> int:
        """Of the word for this launch."""
        return self._address + self._words.itemsize * (number % REPORTS)

    def has(self, number: int) -> bool | None:
        """Whether that launch, which is over, left its number; None if the word serves another by now."""
        if self._latest - number >= REPORTS // 2:
            return None
        return int(self._words[number % REPORTS]) == number


@cache
def reports() -> Reports:
    """Those of this process."""
    return Reports()


@cache
def shared_memory(device: int) -> int:
    """The most dynamic shared memory in bytes that a block without any other can ask for."""
    library, handle, limit = _driver(), ctypes.c_int(), ctypes.c_int()
    _check(library, library.cuInit(0))
    _check(library, library.cuDeviceGet(ctypes.byref(handle), device))
    _check(library, library.cuDeviceGetAttribute(ctypes.byref(limit), MAX_SHARED_OPTIN, handle))
    return limit.value


def compiled(source: str, options: Sequence[str]) -> bytes:
    """Machine code of `source`; raises `RuntimeError` with the compiler's log if it does not compile."""
    library = _nvrtc()
    program = ctypes.c_void_p()
    _succeed(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        given = [option.encode() for option in options]
        code = library.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        if code:
            log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            raise RuntimeError(f"the kernel does not compile with options {list(options)}:\n{log.decode()}")
        return _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size: Any, content: Any, program: ctypes.c_void_p) -> bytes:
    length = ctypes.c_size_t()
    size(program, ctypes.byref(length))
    buffer = ctypes.create_string_buffer(length.value)
    content(program, buffer)
    return buffer.raw


def _succeed(library: ctypes.CDLL, code: int) -> None:
    if code:
        raise RuntimeError(f"NVRTC: {library.nvrtcGetErrorString(code).decode()}")


@cache
def _nvrtc() -> ctypes.CDLL:
    major = str(torch.version.cuda).split(".")[0]
    for library in _wheel_libraries(f"libnvrtc.so.{major}"):
        # NVRTC opens its built-ins by name alone, which succeeds only if they are loaded already
        for builtins in sorted(library.parent.glob(f"libnvrtc-builtins.so.{major}.*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        return _declared(ctypes.CDLL(str(library)))
    try:
        return _declared(ctypes.CDLL(f"libnvrtc.so.{major}"))
    except OSError as error:
        raise RuntimeError(
            f"eigenvalues on CUDA need NVRTC {major}, which torch's CUDA wheel brings as nvidia-cuda-nvrtc: "
            f"install that package or put libnvrtc.so.{major} on the library path"
        ) from error


def _wheel_libraries(name: str) -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    return [path for folder in folders or () for path in sorted(Path(folder).glob(f"*/lib/{name}"))]


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


@cache
def _driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    unsigned = [ctypes.c_uint] * 7
    pointer = ctypes.c_void_p
    library.cuLaunchKernel.argtypes = [pointer, *unsigned, pointer, pointer, pointer]
    return library


@cache
def _context(device: int) -> ctypes.c_void_p:
    """The primary context, which is torch's."""
    library, handle, context = _driver(), ctypes.c_int(), ctypes.c_void_p()
    _check(library, library.cuInit(0))
    _check(library, library.cuDeviceGet(ctypes.byref(handle), device))
    _check(library, library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    return context


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {code}: {text.value.decode() if text.value else 'unknown'}")
