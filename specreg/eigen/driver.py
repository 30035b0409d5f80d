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
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
MAX_SHARED_OPTIN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
REPORTS, WORDS, COUNTERS = 4096, 4, 2
POLLS = 2000  # some tenths of a millisecond
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
        self.device, self._handle = device, ctypes.c_void_p()
        with torch.cuda.device(device):
            _enter(device, ctypes.c_void_p())
            _check(_driver().cuModuleLoadData(ctypes.byref(self._handle), image))

    def kernel(self, name: str, layout: str) -> Kernel:
        """The kernel `name`; `layout` gives the types of its arguments as the `struct` module does, "P" a pointer."""
        function = ctypes.c_void_p()
        with torch.cuda.device(self.device):
            _enter(self.device, ctypes.c_void_p())
            _check(_driver().cuModuleGetFunction(ctypes.byref(function), self._handle, name.encode()))
            _check(_driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared_memory(self.device)))
        return Kernel(self, function, layout)


class Kernel:
    """A function on the device."""

    def __init__(self, module: Module, function: ctypes.c_void_p, layout: str) -> None:
        self._module, self._function = module, function  # the module holds the code
        self._device, self._launch = module.device, _driver().cuLaunchKernel
        self._pack = struct.Struct(layout).pack_into  # with the alignment of C, which is CUDA's too
        self._arguments = _Arguments(struct.calcsize(layout))

    def __call__(self, grid: tuple[int, int], threads: int, shared: int, *arguments: int | float) -> None:
        """Start it on torch's current stream with `shared` bytes of dynamic shared memory.

        Arguments are numbers and addresses on the device; 0 is the null pointer.
        """
        given = self._arguments
        self._pack(given.block, 0, *arguments)
        if torch._C._cuda_getDevice() != self._device:  # entering a device that is current costs as much as a launch
            with torch.cuda.device(self._device):
                self._start(grid, threads, shared, given)
        else:
            self._start(grid, threads, shared, given)

    def _start(self, grid: tuple[int, int], threads: int, shared: int, given: _Arguments) -> None:
        _enter(self._device, given.context)
        stream = torch._C._cuda_getCurrentRawStream(self._device)  # type: ignore[attr-defined,unused-ignore]
        _check(self._launch(self._function, *grid, 1, threads, 1, 1, shared, stream, None, given.extra))


class _Arguments(threading.local):
    """Room for the arguments of a launch, each thread's own."""

    def __init__(self, size: int) -> None:
        self.block, self.length = ctypes.create_string_buffer(size), ctypes.c_size_t(size)
        block, length = ctypes.addressof(self.block), ctypes.addressof(self.length)
        self.extra = (ctypes.c_void_p * 5)(PARAMETER_BUFFER, block, PARAMETER_SIZE, length, PARAMETER_END)
        self.context = ctypes.c_void_p()


def _enter(device: int, current: ctypes.c_void_p) -> None:
    """Make torch's context of the device current in this thread; threads of autograd may have none yet."""
    driver, wanted = _driver(), _context(device)
    _check(driver.cuCtxGetCurrent(ctypes.byref(current)))
    if current.value != wanted.value:
        _check(driver.cuCtxSetCurrent(wanted))


class Reports:
    """What the kernels of one device tell the host: words of its memory in which they leave their launch's number.

    Nothing is copied, cleared or allocated for a launch. A word serves again after as many launches as there are words.
    """

    def __init__(self, device: int) -> None:
        words = torch.zeros(REPORTS * WORDS, dtype=torch.int64, pin_memory=True)
        self._counters = torch.zeros(REPORTS, COUNTERS, dtype=torch.int32, device=f"cuda:{device}")
        torch.cuda.synchronize(device)  # the counters are there, whatever the stream
        self._device, self._address, self._counter = device, words.data_ptr(), self._counters.data_ptr()
        self._words = (ctypes.c_int64 * words.numel()).from_address(words.data_ptr())
        self._memory = words
        self._numbers, self._latest = itertools.count(1), 0

    def number(self) -> int:
        """The next launch's number."""
        self._latest = next(self._numbers)
        return self._latest

    def addresses(self, number: int) -> tuple[int, int]:
        """Of the words on the host and of the counters on the device for this launch."""
        row = number % REPORTS
        return self._address + 8 * WORDS * row, self._counter + 4 * COUNTERS * row

    def wait(self, number: int, word: int) -> None:
        """Until that launch, or one after it, has left its number in this word.

        Raises `RuntimeError` if the device fails, and while a CUDA graph is captured, when nothing is computed.
        """
        words, index = self._words, number % REPORTS * WORDS + word
        for _ in range(POLLS):  # faster than an event by tens of microseconds, if it does not take long
            if words[index] >= number:
                return
        torch.cuda.synchronize(self._device)
        if words[index] < number:
            raise RuntimeError("a kernel for eigenvalues ended without its report")

    def has(self, number: int, word: int) -> bool | None:
        """Whether that launch, which is over, left its number in this word; None if the word serves another by now."""
        if self._latest - number >= REPORTS // 2:
            return None
        return bool(self._words[number % REPORTS * WORDS + word] == number)


@cache
def reports(device: int) -> Reports:
    """Those of this process."""
    return Reports(device)


@cache
def shared_memory(device: int) -> int:
    """The most dynamic shared memory in bytes that a block without any other can ask for."""
    library, handle, limit = _driver(), ctypes.c_int(), ctypes.c_int()
    _check(library.cuInit(0))
    _check(library.cuDeviceGet(ctypes.byref(handle), device))
    _check(library.cuDeviceGetAttribute(ctypes.byref(limit), MAX_SHARED_OPTIN, handle))
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
    _check(library.cuInit(0))
    _check(library.cuDeviceGet(ctypes.byref(handle), device))
    _check(library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    return context


def _check(code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {code}: {text.value.decode() if text.value else 'unknown'}")
