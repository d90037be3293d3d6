"""Launches of the CUDA kernels of this folder, by the driver's interface, on torch's current stream.

Kernels begin while the one before them ends (programmatic dependent launch): each waits, by an instruction of its own,
before it reads what that wrote. Nothing is allocated and nothing is waited for, so launches can be captured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from kquant_cli.native.nvrtc import machine_code

OLDEST = (9, 0)  # compute capability: clusters of blocks, copies in bulk, programmatic launches
STATIC_SHARED, MAX_SHARED, CARVEOUT = 1, 8, 9  # CU_FUNC_ATTRIBUTE_...
MOST_SHARED = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

Argument = Tensor | int | float | None


class Launcher(Protocol):
    """What launches kernels on a device; the tests have one that emulates them."""

    multiprocessors: int
    shared: int  # bytes of shared memory that a block may have

    def launch(
        self, name: str, defines: Mapping[str, int], grid: int, block: int, shared: int, arguments: Sequence[Argument]
    ) -> None:
        """Launch kquant_`name` of `name`.cu, compiled with `defines`: tensors go as pointers, None as a null one."""


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_char * 4), ("value", ctypes.c_int * 16))


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


class DriverLauncher:
    """The launcher of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self.multiprocessors = properties.multi_processor_count
        self._architecture = f"sm_{properties.major}{properties.minor}"
        self._driver = ctypes.CDLL("libcuda.so.1")
        self.shared = self._attribute(MOST_SHARED)
        self._functions: dict[tuple[str, tuple[tuple[str, int], ...]], ctypes.c_void_p] = {}

    def _attribute(self, number: int) -> int:
        """An attribute of the device, which the driver counts as torch does."""
        value, device = ctypes.c_int(), ctypes.c_int()
        self._check(self._driver.cuDeviceGet(ctypes.byref(device), self._device.index or 0), "cuDeviceGet")
        self._check(self._driver.cuDeviceGetAttribute(ctypes.byref(value), number, device), "cuDeviceGetAttribute")
        return value.value

    def launch(
        self, name: str, defines: Mapping[str, int], grid: int, block: int, shared: int, arguments: Sequence[Argument]
    ) -> None:
        """As `Launcher` says; raises CompilerError, or RuntimeError with what the driver said."""
        with torch.cuda.device(self._device):
            key = (name, tuple(defines.items()))
            function = self._functions.get(key)
            if function is None:
                function = self._functions[key] = self._load(name, defines)
            held, pointers = packed_arguments(arguments)
            attribute = Attribute(OVERLAP)
            attribute.value[0] = 1
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            config = Config(grid, 1, 1, block, 1, 1, shared, stream, ctypes.pointer(attribute), 1)
            self._check(self._driver.cuLaunchKernelEx(ctypes.byref(config), function, pointers, None), name)
            del held

    def _load(self, name: str, defines: Mapping[str, int]) -> ctypes.c_void_p:
        cubin = machine_code(name, defines, self._architecture, torch.version.cuda or "")
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._driver.cuModuleLoadData(ctypes.byref(module), cubin), name)
        self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), module, f"kquant_{name}".encode()), name)
        static = ctypes.c_int()
        self._check(self._driver.cuFuncGetAttribute(ctypes.byref(static), STATIC_SHARED, function), name)
        for attribute, value in ((MAX_SHARED, self.shared - static.value), (CARVEOUT, 100)):
            self._check(self._driver.cuFuncSetAttribute(function, attribute, ctypes.c_int(value)), name)
        return function

    def _check(self, code: int, name: str) -> None:
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else code}")


def packed_arguments(arguments: Sequence[Argument]) -> tuple[list[ctypes._SimpleCData], ctypes.Array[ctypes.c_void_p]]:
    """The arguments as C's numbers, which must live until the launch, and the pointers to them."""
    held: list[ctypes._SimpleCData] = []
    for argument in arguments:
        if isinstance(argument, float):
            held.append(ctypes.c_float(argument))
        elif isinstance(argument, int):
            held.append(ctypes.c_int(argument))
        else:
            held.append(ctypes.c_void_p(0 if argument is None else argument.data_ptr()))
    return held, (ctypes.c_void_p * len(held))(*(ctypes.addressof(number) for number in held))


@cache
def launcher_for(device: torch.device) -> Launcher | None:
    """The launcher of a device, or None where it is no CUDA device, or older than the kernels need."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < OLDEST:
        return None
    try:
        return DriverLauncher(device)
    except (OSError, RuntimeError):  # there is no driver's library of that name, or it knows no such device
        return None
