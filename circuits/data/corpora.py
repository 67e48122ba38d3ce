"""Text to learn from, with an identity: the installed Python's standard library, a file, or a Hugging Face data set.

The standard library gives two separate kinds. *Code* is every module's source without its docstrings; *prose* is those
docstrings and the documentation topics behind ``help()``. Which documents are held out follows from a hash of their
names, so the split is the same everywhere. The text differs between Python versions: identity (version and hash of the
text) goes with every corpus, and shipped numbers are computed from shipped tokens, never from the library installed.
"""

import ast
import hashlib
import inspect
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "lib2to3",
    "pydoc_data",
    "turtledemo",
}
"""Folders of the standard library that are tests, tables or third-party."""

HELD_OUT_TENTHS = 1


@dataclass(frozen=True)
class Corpus:
    """Named documents of one kind, in a fixed order."""

    kind: str
    names: tuple[str, ...]
    documents: tuple[str, ...]
    origin: str

    def __post_init__(self) -> None:
        if not self.documents:
            raise ValueError(f"the corpus {self.kind!r} from {self.origin} holds no text; check the path or column")

    def split(self, part: Literal["train", "held_out"]) -> "Corpus":
        """The deterministic tenth of the documents that is held out, or the rest."""
        chosen = [(n, d) for n, d in zip(self.names, self.documents, strict=True) if _is_held_out(n) == (part == "held_out")]
        if not chosen:
            raise ValueError(f"the {part} split of {self.origin} is empty: it has only {len(self.names)} documents, give more")
        return Corpus(self.kind, tuple(n for n, _ in chosen), tuple(d for _, d in chosen), f"{self.origin} ({part})")

    @property
    def identity(self) -> dict[str, Any]:
        """What a result records: kind, origin, documents, characters, hash."""
        digest = hashlib.sha256()
        for name, text in zip(self.names, self.documents, strict=True):
            digest.update(f"{len(name)}:{name}{len(text)}:".encode())
            digest.update(text.encode("utf-8", "surrogatepass"))
        return {
            "kind": self.kind,
            "origin": self.origin,
            "documents": len(self.documents),
            "characters": sum(map(len, self.documents)),
            "sha256": digest.hexdigest(),
        }


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % 10 < HELD_OUT_TENTHS


def _modules() -> Iterator[tuple[str, str, ast.Module]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if LEFT_OUT & set(place.parts) or place.parts[0].startswith("config-"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            yield place.as_posix(), text, ast.parse(text)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue


def _docstring_nodes(tree: ast.Module) -> Iterator[ast.Expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                yield first


def without_docstrings(text: str, tree: ast.Module) -> str:
    """The source with the lines of every docstring cut out (comments stay)."""
    lines = text.splitlines(keepends=True)
    gone: set[int] = set()
    for node in _docstring_nodes(tree):
        alone = lines[node.lineno - 1].lstrip()[:1] in "\"'rRuU" and node.end_lineno is not None
        if alone:
            gone.update(range(node.lineno - 1, node.end_lineno or node.lineno))
    return "".join(line for i, line in enumerate(lines) if i not in gone)


def stdlib_code() -> Corpus:
    """Source code of the installed Python's standard library, docstrings removed."""
    found = [(name, without_docstrings(text, tree)) for name, text, tree in _modules()]
    return _corpus("code", found, f"standard library of Python {platform.python_version()}")


def stdlib_prose() -> Corpus:
    """Docstrings and documentation topics of the installed Python's standard library."""
    found = []
    for name, _, tree in _modules():
        parts = [inspect.cleandoc(node.value.value) for node in _docstring_nodes(tree)]  # type: ignore[attr-defined]
        if parts:
            found.append((name, "\n\n".join(parts) + "\n"))
    from pydoc_data import topics

    found += [(f"topics/{name}", text) for name, text in sorted(topics.topics.items())]
    return _corpus("prose", found, f"standard library of Python {platform.python_version()}")


def text_file(path: str | Path, *, kind: str = "text") -> Corpus:
    """A UTF-8 text file, one document per blank-line-separated paragraph block of at least 1,000 characters.

    Raises:
        ValueError: the file is missing, not UTF-8, or empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} as UTF-8 text ({error}); give an existing text file") from error
    documents: list[str] = []
    piece = ""
    for paragraph in text.split("\n\n"):
        piece += paragraph + "\n\n"
        if len(piece) >= 1000:
            documents.append(piece)
            piece = ""
    if piece.strip():
        documents.append(piece)
    return _corpus(kind, [(f"{path.name}#{i}", d) for i, d in enumerate(documents)], str(path.name))


def hf_dataset(
    path_or_name: str, *, split: str = "train", column: str = "text", kind: str = "text", limit: int | None = None
) -> Corpus:
    """A Hugging Face data set (hub name or local folder), one document per row.

    Needs the ``hub`` extra. Raises ValueError: the column does not exist.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            "reading a Hugging Face data set needs the datasets package: pip install 'circuits-interp[hub]'"
        ) from error
    rows: Any = load_dataset(path_or_name, split=split)
    found = []
    for i, row in enumerate(rows):
        if limit is not None and i >= limit:
            break
        if column not in row:
            raise ValueError(f"{path_or_name} has no column {column!r}, only {', '.join(row)}: pass column=")
        found.append((f"{split}/{i}", str(row[column])))
    return _corpus(kind, found, f"{path_or_name}:{split}")


def _corpus(kind: str, found: Iterable[tuple[str, str]], origin: str) -> Corpus:
    kept = [(name, text) for name, text in found if text.strip()]
    return Corpus(kind, tuple(n for n, _ in kept), tuple(t for _, t in kept), origin)
