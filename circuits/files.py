"""Files that are either whole or absent: written aside, flushed, and moved into place."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then move it there; an interruption leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    aside = Path(name)
    try:
        write(aside)
        with aside.open("rb") as whole:
            os.fsync(whole.fileno())
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Canonical JSON: sorted keys, two spaces, a final newline."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def read_json(path: str | Path, *, what: str) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: missing, or not JSON; the sentence names the file and what it should have been.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; {what} is needed there") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); {what} is needed there") from error


def read_tokenizer(path: str | Path) -> "Tokenizer":
    """A ``tokenizer.json`` of the tokenizers library.

    Raises:
        ValueError: missing or not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValueError(f"cannot read the tokenizer {path} ({error}); give a tokenizers-format tokenizer.json") from error
