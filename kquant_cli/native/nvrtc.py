"""CUDA kernels compiled by NVRTC, the compiler that torch's CUDA wheels bring along; no header of CUDA's is needed.

A kernel's machine code is kept in the user's cache as the loops for the CPU are: named by its hash, compiled by one
process for all. Where the cache cannot be written to, it is compiled for this process alone.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from kquant_cli import native

SOURCES = Path(__file__).parent / "cuda"
STANDARD = "-std=c++17"
FOLDERS = ("nvidia/cu{major}/lib", "nvidia/cuda_nvrtc/lib")  # of the wheels, below site-packages


class CompilerError(Exception):
    """NVRTC is not there, or refuses the source: what it said."""


def machine_code(name: str, defines: Mapping[str, int], architecture: str, cuda: str) -> bytes:
    """The cubin of `name`.cu for `architecture`, such as sm_90, by the NVRTC of that version of CUDA.

    Raises CompilerError.
    """
    source = SOURCES / f"{name}.cu"
    headers = sorted(SOURCES.glob("*.cuh"))
    options = [STANDARD, f"--gpu-architecture={architecture}", *(f"-D{key}={value}" for key, value in defines.items())]
    text = "\n".join([*(file.read_text(encoding="utf-8") for file in (source, *headers)), *options, cuda])

    def build(part: Path) -> None:
        logging.getLogger("kquant_cli").info("compiling %s for %s, which is done once", source.name, architecture)
        part.write_bytes(_compile(source, headers, options, cuda))

    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
        return native.kept(text, ".cubin", build, native.cache_folder()).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        return native.kept(text, ".cubin", build, Path(folder)).read_bytes()


def _compile(source: Path, headers: list[Path], options: list[str], cuda: str) -> bytes:
    library = _library(cuda)
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(header.read_bytes() for header in headers))
    names = (ctypes.c_char_p * len(headers))(*(header.name.encode() for header in headers))
    arguments = (source.read_bytes(), source.name.encode(), len(headers), texts, names)
    if library.nvrtcCreateProgram(ctypes.byref(program), *arguments):
        raise CompilerError("NVRTC cannot make a program")
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), given):
            raise CompilerError(_text(library, program, "ProgramLog").decode(errors="replace").strip("\0\n "))
        return _text(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """What NVRTC has made: CUBIN or ProgramLog."""
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, content)
    return content.raw


@cache
def _library(cuda: str) -> ctypes.CDLL:
    """NVRTC of that version of CUDA, such as 12.8: loaded already, on the system's path, or among the wheels."""
    major = cuda.partition(".")[0]
    file = f"libnvrtc.so.{major}"
    folders = [Path(path, folder.format(major=major)) for path in sys.path for folder in FOLDERS]
    for candidate in (file, *(str(folder / file) for folder in folders)):
        with suppress(OSError):
            return ctypes.CDLL(candidate)
    raise CompilerError(f"there is no {file}, which comes with torch for CUDA")
