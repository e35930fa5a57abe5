"""Which of a package's own code a module runs, found from the imports, and a hash of it that only code changes. A
module's hash is over its syntax tree: comments, docstrings and formatting are not in it. Nor is where its imports of
the package's own modules are from or stand, only which names they bring: a module that is moved or renamed, and those
that import it, keep their hashes. An __init__ that only passes names on is looked through. Nothing is imported."""

import ast
import contextlib
import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from primekd.foundation.errors import UserError

SOURCE = Path(__file__).parents[1]


class Import(NamedTuple):
    """One name that is brought into a module: `from module import name as bound`; name is None for `import module`."""

    module: str
    name: str | None
    bound: str


@dataclass(frozen=True)
class Source:
    sha256: str  # of its syntax tree, without imports of the package's own modules
    own: tuple[Import, ...]  # names from the package itself, imported when it runs
    foreign: frozenset[str]  # the top-level packages of all else
    passes_on: bool  # whether it does nothing but import


@dataclass(frozen=True)
class Closure:
    """The code of some modules and of all that they import."""

    modules: dict[str, str]  # their names -> hashes
    foreign: frozenset[str]
    brought: frozenset[str]  # importing module's hash, name and hash of the module that it comes from, of own imports

    @cached_property
    def sha256(self) -> str:
        """Hash of all of it: of the modules' hashes and of which takes what from which, whatever they are called."""
        return hashlib.sha256("\n".join([*sorted(self.modules.values()), *sorted(self.brought)]).encode()).hexdigest()


def _texts() -> dict[Path, str]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # an editor's lock, a file that was just renamed
            found[path] = path.read_text(encoding="utf-8")
    return found


# A module that is edited after a process has imported it is not the code that this process runs.
_OWN = _texts()


def read_source(path: Path) -> str:
    if path not in _OWN:
        return path.read_text(encoding="utf-8")
    name = ".".join([SOURCE.name, *path.relative_to(SOURCE).with_suffix("").parts])
    if name.removesuffix(".__init__") not in sys.modules:  # imported when it is needed: what stands there will run
        _OWN[path] = path.read_text(encoding="utf-8")
    return _OWN[path]


def closure(entries: Iterable[str], stop: Collection[str] = (), source: Path = SOURCE) -> Closure:
    """The modules that `entries` import, directly or not, inside functions too; not what type checkers alone read.
    `stop`: modules, or packages, that are left out with what only they import. `source`: the package's folder."""
    reader, found, foreign, waiting = _Reader(source), {}, set(), list(entries)
    taken: set[tuple[str, str, str]] = set()  # importing module, what it calls the name, module that it comes from
    while waiting:
        name = waiting.pop()
        if name in found or any(name == s or name.startswith(f"{s}.") for s in stop):
            continue
        module = reader.read(name)
        found[name] = None if module.passes_on else reader.hash_of(name)
        foreign |= module.foreign
        brings = {(name, one.bound, target) for one in module.own for target in reader.targets(one)}
        taken |= brings
        waiting += {target for _, _, target in brings}
    modules = {name: digest for name, digest in sorted(found.items()) if digest}
    brought = {f"{found[a]} {bound} {found[b]}" for a, bound, b in taken if found.get(a) and found.get(b)}
    return Closure(modules, frozenset(foreign), frozenset(brought))


class _Reader:
    """Finds modules by name. What their texts say is kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, Source] = {}
        self.path = cache(self._path)

    def _path(self, name: str) -> Path | None:
        """A module's file; None where it is none of the package's."""
        top, *parts = name.split(".")
        base = self.folder.joinpath(*parts)
        files = [base / "__init__.py"] if not parts else [base.with_suffix(".py"), base / "__init__.py"]
        return next((path for path in files if path.is_file()), None) if top == self.folder.name else None

    def read(self, name: str) -> Source:
        if name in self._read:
            return self._read[name]
        if (path := self.path(name)) is None:
            raise UserError(f"{name} is no module of {self.folder.name}: mend the import, or the list of stages.")
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        try:
            self._read[name] = _understand(read_source(path), package, self.folder.name)
        except SyntaxError as error:
            raise UserError(f"{path.name} cannot be read ({error}): mend it and run again.") from error
        return self._read[name]

    def targets(self, one: Import) -> Iterator[str]:
        if one.name and self.path(f"{one.module}.{one.name}"):
            yield f"{one.module}.{one.name}"
        elif self.path(one.module):
            passed = [i for i in self.read(one.module).own if i.bound == one.name] if one.name else []
            if passed and self.read(one.module).passes_on:
                for other in passed:
                    yield from self.targets(other)
            else:
                yield one.module

    def hash_of(self, name: str) -> str:
        """Hash of a module: its tree, and the names that it brings in, in any order."""
        module = self.read(name)
        names = sorted(
            i.bound if i.name is None or self.path(f"{i.module}.{i.name}") else f"{i.name} as {i.bound}"
            for i in module.own
        )
        return hashlib.sha256("\n".join([module.sha256, *names]).encode()).hexdigest()


@lru_cache(maxsize=1024)
def _understand(text: str, package: str, top: str) -> Source:
    """What a module's text says. `package`: the one that it is in, or is; `top`: the project's."""
    gathered = _Gather(package, top)
    tree = gathered.visit(ast.parse(text))
    passes_on = not gathered.foreign and all(ast.unparse(node).startswith("__all__ = ") for node in tree.body)
    digest = hashlib.sha256(_written(tree).encode()).hexdigest()
    return Source(digest, tuple(gathered.own), frozenset(gathered.foreign), passes_on)


class _Gather(ast.NodeTransformer):
    """Takes docstrings, own imports and what is for type checkers alone out of a tree; keeps the names."""

    def __init__(self, package: str, top: str):
        self.package, self.top = package, top
        self.own: list[Import] = []
        self.foreign: set[str] = set()

    def _without_docstring(self, node):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _without_docstring

    def visit_If(self, node: ast.If):
        if getattr(node.test, "id", getattr(node.test, "attr", None)) == "TYPE_CHECKING":
            return self.generic_visit(ast.Module(node.orelse, [])).body
        return self.generic_visit(node)

    def visit_Import(self, node: ast.Import):
        for alias in node.names:
            self._add(alias.name, None, alias.asname or alias.name.partition(".")[0])
        node.names = [alias for alias in node.names if not self._is_own(alias.name)]
        return node if node.names else None

    def visit_ImportFrom(self, node: ast.ImportFrom):
        module = node.module or ""
        if node.level:
            base = self.package.split(".")
            module = ".".join([*base[: len(base) - node.level + 1], *filter(None, [node.module])])
        for alias in node.names:
            self._add(module, None if alias.name == "*" else alias.name, alias.asname or alias.name)
        return None if self._is_own(module) else node

    def visit_Call(self, node: ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", None))
        if called == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
            self._add(str(node.args[0].value), None, "")
        return self.generic_visit(node)

    def _is_own(self, module: str) -> bool:
        return module.partition(".")[0] == self.top

    def _add(self, module: str, name: str | None, bound: str) -> None:
        if self._is_own(module):
            self.own.append(Import(module, name, bound))
        else:
            self.foreign.add(module.partition(".")[0])


def _written(node) -> str:
    """A syntax tree as text, the same in every version of Python: empty and absent fields are left out."""
    if isinstance(node, ast.AST):
        fields = (f"{name}={_written(v)}" for name, v in ast.iter_fields(node) if v is not None and v != [])
        return f"{type(node).__name__}({','.join(fields)})"
    return f"[{','.join(map(_written, node))}]" if isinstance(node, list) else repr(node)
