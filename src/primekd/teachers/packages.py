"""The packages behind the engines: how to get them, and in plain words why one does not import here."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from primekd.foundation.errors import UserError


@dataclass(frozen=True)
class Package:
    """`module` and those in `more` are imported to see whether the engine is here; an `optional` one is missed by
    nobody who does not name it in a profile; a `cuda` one runs on NVIDIA GPUs alone."""

    module: str
    fix: str
    more: tuple[str, ...] = ()
    optional: bool = True
    cuda: bool = False


PACKAGES = {
    "transformers": Package("transformers", "pip install -r requirements.txt", optional=False),
    "llamacpp": Package(
        "llama_cpp",
        "make setup-llamacpp, or pip install -r requirements-llamacpp.txt (it is compiled: install a C++ compiler, "
        "e.g. g++, first)",
    ),
    "exllamav2": Package(
        "exllamav2",
        "pip install -e '.[exllamav2]' beside a CUDA build of torch (it is compiled on its first import: nvcc, g++ "
        "and ninja must be here)",
        cuda=True,
    ),
    "vllm": Package("vllm", "pip install -e '.[vllm]' in an environment of its own (it pins its own torch)"),
    "api": Package("httpx", "pip install -e '.[api]'", more=("tenacity", "filelock")),
    "bitsandbytes": Package("bitsandbytes", "pip install -e '.[bitsandbytes]'"),
}

# What the messages of pip's wheels, torch's extension builder and the CUDA runtime say -> what to do about it.
# The first match counts. {torch}: torch's version; {cuda}: the CUDA version that it was built for.
CAUSES = {
    r"too old \(found version|driver version is insufficient":
        "the NVIDIA driver is older than torch {torch} needs: update the driver, or install a torch built for an older "
        "CUDA version",
    r"Found no NVIDIA driver|libcuda\.so":
        "there is no NVIDIA driver: install it and see that `nvidia-smi` lists the GPU",
    r"no kernel image is available":
        "it was not compiled for this GPU's generation: compile it here (TORCH_CUDA_ARCH_LIST), or take another wheel",
    r"flash_attn.*undefined symbol":
        "flash-attn was compiled for another torch than {torch}: install the wheel that names this version, or "
        "uninstall it (then there is no paged batching and responses are generated one at a time)",
    r"undefined symbol":
        "its compiled part was built for another torch than {torch}: install the wheel that names this version",
    r"mismatches the version that was used to compile":
        "the CUDA toolkit (nvcc) is not the version {cuda} that torch was built for: install that one and set "
        "CUDA_HOME to it",
    r"CUDA_HOME environment variable is not set|nvcc: (not found|No such file)|cuda_runtime\.h: No such":
        "it is compiled on import and the CUDA toolkit (nvcc) was not found: install the toolkit of version {cuda} and "
        "set CUDA_HOME to it",
    r"Ninja is required|ninja: not found": "it is compiled on import and ninja is missing: pip install ninja",
    r"(c\+\+|g\+\+|gcc|cc1plus)['\"]?: (not found|No such file)|No such file or directory: '(c\+\+|g\+\+)'|"
    r"cannot execute .cc1plus":
        "it is compiled on import and there is no C++ compiler: install one, on Debian with `apt install g++`",
    r"unsupported GNU version|(less than the minimum|greater than the maximum) required version by CUDA":
        "this g++ does not go with nvcc {cuda}: install a version that nvcc allows and name it in CXX and NVCC_CCBIN",
    r"Python\.h: No such file": "Python's headers are missing: on Debian `apt install python3-dev`",
    r"GLIBC(XX)?_[\d.]+.{0,3} not found": "its wheel is for a newer Linux: compile it here, or take an older wheel",
    r"Error building extension|Error compiling objects":
        "its C++ and CUDA part did not compile: the first error that the compiler printed says why",
}  # fmt: skip
NO_CUDA_BUILD = r"CUDA_HOME|Torch not compiled with CUDA|lib(torch_cuda|cudart|c10_cuda)\S*: cannot open"
WITHOUT_FLASH_ATTN = (
    "without flash-attn 2.5.7 or newer there is no paged batching and responses are generated one at a time: pip "
    "install flash-attn --no-build-isolation"
)


def missing_cuda() -> str | None:
    """Why torch sees no GPU here, or None if it sees one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install a CUDA build of it"
    return "torch sees no GPU here: look at what `nvidia-smi` says, and at CUDA_VISIBLE_DEVICES"


def is_installed(engine: str) -> bool:
    """Whether all of an engine's packages are here, built or not; nothing is imported."""
    package = PACKAGES[engine]
    return all(importlib.util.find_spec(module) is not None for module in (package.module, *package.more))


@contextmanager
def explained(engine: str) -> Iterator[None]:
    """Turns what an engine's import raises into one sentence, a UserError."""
    try:
        yield
    except Exception as error:  # what is compiled on import, or for another GPU, may raise anything
        raise UserError(explain_import_failure(engine, error)) from error


def explain_import_failure(engine: str, error: BaseException) -> str:
    """One sentence on why a package of `PACKAGES` does not import, and what to do. `error`: what the import raised."""
    package, text = PACKAGES[engine], " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name == package.module:
        return f"{engine} is not installed: {package.fix}."
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{engine} needs the Python package {error.name.partition('.')[0]}, which is missing: {package.fix}."
    if torch.version.cuda is None and re.search(NO_CUDA_BUILD, text):
        fix = "install a CUDA build of torch"
        return f"{engine} does not import: torch {torch.__version__} was built without CUDA, which it needs: {fix}."
    for pattern, advice in CAUSES.items():
        if re.search(pattern, text):
            filled = advice.format(torch=torch.__version__, cuda=torch.version.cuda or "that torch was built for")
            return f"{engine} does not import: {filled}."
    return f"{engine} does not import ({type(error).__name__}: {text[:200]}): {package.fix}."
