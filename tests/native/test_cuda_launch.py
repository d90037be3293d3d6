"""Compiling by NVRTC and launching by the driver: with stand-ins for both libraries, and with NVRTC where it is."""

import ctypes
import logging
from types import SimpleNamespace

import pytest
import torch
from cuda_emulator import EmulatedLauncher, emulator, needs_emulator

from kquant_cli import native
from kquant_cli.bases import CoupledBases
from kquant_cli.native import cuda_launch, nvrtc
from kquant_cli.native.cuda_launch import Attribute, Config
from kquant_cli.runtime.products import cuda


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What is compiled, by a compiler that only notes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def compiler(source, headers, options, version):
        calls.append((source.name, options, version))
        return b"machine code " + " ".join(options).encode()

    monkeypatch.setattr(nvrtc, "_compile", compiler)
    return calls


def test_machine_code_is_compiled_once_and_kept(compiled, caplog):
    with caplog.at_level(logging.INFO, "kquant_cli"):
        first = nvrtc.machine_code("product", {"THE_KIND": 0, "TOKENS": 1}, "sm_90", "13.0")
    assert [record.message for record in caplog.records] == ["compiling product.cu for sm_90, which is done once"]
    assert nvrtc.machine_code("product", {"THE_KIND": 0, "TOKENS": 1}, "sm_90", "13.0") == first
    assert compiled == [
        ("product.cu", ["-std=c++17", "--gpu-architecture=sm_90", "-DTHE_KIND=0", "-DTOKENS=1"], "13.0")
    ]
    (kept,) = native.cache_folder().glob("*.cubin")
    kept.write_bytes(first[:9])  # not whole: it is compiled anew
    assert nvrtc.machine_code("product", {"THE_KIND": 0, "TOKENS": 1}, "sm_90", "13.0") == first
    assert len(compiled) == 2


def test_what_differs_is_compiled_apart(compiled):
    for defines in ({"THE_KIND": 0, "TOKENS": 1}, {"THE_KIND": 1, "TOKENS": 1}):
        nvrtc.machine_code("product", defines, "sm_90", "13.0")
    nvrtc.machine_code("product", defines, "sm_100", "13.0")
    nvrtc.machine_code("product", defines, "sm_100", "12.8")
    nvrtc.machine_code("activations", {}, "sm_90", "13.0")
    assert len(compiled) == 5


def test_a_cache_that_cannot_be_written_to(compiled, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    assert nvrtc.machine_code("activations", {}, "sm_90", "13.0").startswith(b"machine code")


def test_without_nvrtc_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(nvrtc.CompilerError, match=r"there is no libnvrtc\.so\.7, which comes with torch for CUDA"):
        nvrtc.machine_code("activations", {}, "sm_90", "7.5")


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.cuda is None, reason="needs torch for CUDA")
def test_nvrtc_compiles_all_and_says_what_it_refuses(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = [("outputs", {})]
    for split in (0, 1):
        kernels += [("activations", {"THE_SPLIT": split})]
        kernels += [
            ("product", {"THE_KIND": k, "TOKENS": n, "THE_SPLIT": split}) for k in range(4) for n in cuda.TOKENS
        ]
    for name, defines in kernels:
        assert nvrtc.machine_code(name, defines, "sm_90", torch.version.cuda).startswith(b"\x7fELF")
    with pytest.raises(nvrtc.CompilerError, match="THE_KIND"):
        nvrtc.machine_code("product", {}, "sm_90", torch.version.cuda)


class Driver:
    """Stands in for libcuda: counts modules, and runs what is launched in the emulator."""

    def __init__(self, library):
        self.library, self.modules, self.launches, self.attributes = library, [], [], []
        self.failing = 0

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal
        return 0

    def cuDeviceGetAttribute(self, value, number, device):  # noqa: N802
        assert (number, device.value) == (97, 1)
        value._obj.value = 227 * 1024
        return 0

    def cuModuleLoadData(self, module, image):  # noqa: N802
        self.modules.append(image.decode())
        module._obj.value = len(self.modules)
        return 0

    def cuModuleGetFunction(self, function, module, name):  # noqa: N802
        function._obj.value = 100 + module.value
        self.modules[-1] += f" {name.decode()}"
        return 0

    def cuFuncGetAttribute(self, value, attribute, function):  # noqa: N802
        value._obj.value = 1024
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):  # noqa: N802
        self.attributes.append((attribute, value.value))
        return 0

    def cuLaunchKernelEx(self, config, function, pointers, extra):  # noqa: N802
        c = config._obj
        assert (c.gy, c.gz, c.by, c.bz, extra, c.count) == (1, 1, 1, 1, None, 1)
        assert (c.attributes[0].id, c.attributes[0].value[0]) == (6, 1)
        self.launches.append((function.value, c.gx, c.bx, c.stream))
        if self.failing:
            return self.failing
        image = self.modules[function.value - 101]
        defines = [option[2:].replace("THE_", "") for option in image.split() if option.startswith("-D")]
        name = " ".join([image.split()[-1].removeprefix("kquant_"), *defines])
        return self.library.emulator_launch(name.encode(), c.gx, c.bx, c.shared, pointers)

    def cuGetErrorString(self, code, text):  # noqa: N802
        text._obj.value = b"an illegal instruction was encountered"
        return 0


@needs_emulator
def test_the_driver_is_given_what_the_emulator_is(compiled, monkeypatch):
    """Each kernel is loaded once; grids, streams, attributes and arguments are where the driver looks for them."""
    library = emulator()
    driver = Driver(library)
    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *rest: driver if name == "libcuda.so.1" else real(name, *rest))
    properties = SimpleNamespace(multi_processor_count=3, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: pytest.MonkeyPatch.context())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    launcher = cuda_launch.DriverLauncher(torch.device("cuda", 1))
    assert (launcher.multiprocessors, launcher.shared) == (3, 227 * 1024)

    pair, x = CoupledBases(256, 0), torch.randn(2, 256).bfloat16()
    results = []
    for one in (EmulatedLauncher(library), launcher):
        EmulatedLauncher.install(one, monkeypatch)
        results.append([*cuda.floats(pair, x, None), *cuda.floats(pair, x[:1].clone(), None)])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    assert driver.launches == [(101, 16, 512, 77), (101, 8, 512, 77)]
    assert driver.attributes == [(8, 226 * 1024), (9, 100)]
    assert len(driver.modules) == 1 and "--gpu-architecture=sm_90" in driver.modules[0]
    driver.failing = 715
    with pytest.raises(RuntimeError, match="activations: an illegal instruction was encountered"):
        cuda.floats(pair, x, None)


def test_the_structures_are_laid_out_as_the_drivers():
    """CUlaunchAttribute and CUlaunchConfig of cuda.h, on 64-bit machines."""
    assert (ctypes.sizeof(Attribute), Attribute.value.offset) == (72, 8)
    offsets = (Config.shared.offset, Config.stream.offset, Config.attributes.offset, Config.count.offset)
    assert (ctypes.sizeof(Config), *offsets) == (56, 24, 32, 40, 48)


def test_a_cpu_has_no_launcher():
    assert cuda_launch.launcher_for(torch.device("cpu")) is None


@pytest.mark.parametrize(("capability", "expected"), [((8, 9), None), ((9, 0), "made")])
def test_older_devices_have_none(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(cuda_launch, "DriverLauncher", lambda device: "made")
    assert cuda_launch.launcher_for.__wrapped__(torch.device("cuda", 0)) == expected
