"""Safe HTML: text becomes text, numbers stand beside their errors, and nothing is loaded from anywhere.

Markup is built with ``Markup(...).format(...)`` (markupsafe), which escapes every argument that is not markup itself, so
text has to be let through on purpose and never by oversight. Scripts get their data by ``script_json``, in which no
character can end a script element. Every page carries a content security policy that forbids the network.
"""

import base64
import gzip
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a page of ours may do: show its own images, use its own styles and scripts; no request to anywhere."""

_MARKS = {" ": "·", "\n": "⏎", "\t": "⇥"}
_RUN = re.compile("([·⏎⇥])\\1{4,}")


def show_token(text: str) -> str:
    """A token with its white space visible, one-to-one: two different tokens never read the same.

    Space is ``·``, newline ``⏎``, tab ``⇥``; five or more in a row are counted, ``·⟨12⟩``. Unprintable characters,
    backslashes and literal ``· ⏎ ⇥ ⟨ ⟩`` appear as Python escapes; an empty token is ``⟨⟩``.

    Example:
        >>> show_token(" if"), show_token("\\n        "), show_token("\\\\n")
        ('·if', '⏎·⟨8⟩', '\\\\\\\\n')
    """
    reserved = set("\\⟨⟩").union(_MARKS.values())
    shown = "".join(
        _MARKS.get(char) or (char if char.isprintable() and char not in reserved else char.encode("unicode_escape").decode())
        for char in text
    )
    return _RUN.sub(lambda run: f"{run[1]}⟨{len(run[0])}⟩", shown) or "⟨⟩"


def token_labels(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """How tokens are labelled in views: their text made visible, or their ids where there is no tokenizer.

    A token that is only part of a character (byte-level BPE) is shown by its id, ``⟨137⟩``.
    """
    from circuits.data.tokenizer import token_strings

    ids = [int(i) for i in ids]
    return [
        f"⟨{i}⟩" if "\N{REPLACEMENT CHARACTER}" in text else show_token(text)
        for i, text in zip(ids, token_strings(tokenizer, ids), strict=True)
    ]


def shortened(text: str, longest: int = 16) -> str:
    """Room is short on axes: the middle of a long label gives way to ``…``."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[1 - longest // 2 :]}"


def script_json(value: Any) -> Markup:
    """JSON that is safe between ``<script>`` tags: pure ASCII, without ``<``, ``>`` or ``&``.

    Raises:
        ValueError: it holds NaN or infinity, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@lru_cache(maxsize=1)
def bundle() -> Markup:
    """circuitsvis' own browser bundle (React, Chart.js), as text for a classic script element.

    Raises:
        ValueError: the installed circuitsvis does not carry it.
    """
    found = importlib.util.find_spec("circuitsvis")
    path = Path(found.origin).parent / "dist" / "cdn" / "iife.js" if found and found.origin else Path("circuitsvis")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            "the installed circuitsvis has no dist/cdn/iife.js; attention views need it: pip install 'circuitsvis>=1.43'"
        ) from error
    # The source map is a file the page does not have; a closing tag inside a string would end the script element.
    text = re.sub(r"\n//# sourceMappingURL=.*", "", text)
    return Markup(re.sub(r"</(?=script)", r"<\\/", text, flags=re.IGNORECASE).replace("<!--", r"<\!--"))


@lru_cache(maxsize=1)
def packed_bundle() -> str:
    """The bundle as base64 of gzip: a third of the size, for notebooks, where every output needs its own copy."""
    return base64.b64encode(gzip.compress(str(bundle()).encode(), compresslevel=9, mtime=0)).decode()


def data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def decimal(value: float, digits: int = 3) -> str:
    """A number with a true minus sign; ``–`` where there is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", "−")


def spread(value: float, digits: int = 3) -> str:
    """An error or a standard deviation: one too small to print is not called zero."""
    return f"<{10.0**-digits:.{digits}f}" if 0 < value < 0.5 * 10.0**-digits else decimal(value, digits)


def with_error(value: float, stderr: float, digits: int = 3) -> str:
    """``0.412 ± 0.011``; a value without an error says so."""
    return (
        f"{decimal(value, digits)} ± {spread(stderr, digits)}"
        if math.isfinite(stderr)
        else f"{decimal(value, digits)} (no error)"
    )


def z_score(z: float) -> str:
    """Distance from a null in its standard deviations; whole numbers where decimals say nothing."""
    return decimal(z, 1) if abs(z) < 100 or not math.isfinite(z) else count(z)


def probability(p: float, smallest: float = math.nan) -> str:
    """A p or q: ``0.013``, ``5e−5``; ``≤`` before one that is the smallest it could have been, so that it is never called 0."""
    if not math.isfinite(p):
        return "–"
    text = decimal(p) if p >= 0.0095 else f"{p:.0e}".replace("e-0", "e−").replace("e-", "e−")
    return f"≤{text}" if p <= smallest * (1 + 1e-9) else text


def evidence(result: Any, digits: int = 3) -> str:
    """A value with its error, its chance level and its null, as every number in a report has them.

    Args:
        result: a dataset of scalars ``value, stderr`` and, where known, ``chance, null_mean, null_sd, z``.
    """
    known = {name: float(result[name]) for name in ("value", "stderr", "chance", "null_mean", "null_sd", "z") if name in result}
    text = with_error(known["value"], known["stderr"], digits)
    beside = [f"chance {decimal(known['chance'], digits)}"] if math.isfinite(known.get("chance", math.nan)) else []
    if math.isfinite(known.get("null_mean", math.nan)):
        beside.append(
            f"untrained {decimal(known['null_mean'], digits)}, sd {spread(known['null_sd'], digits)}, z = {z_score(known['z'])}"
        )
    return f"{text} ({'; '.join(beside)})" if beside else text


def count(value: int | float) -> str:
    """A whole number in groups of three."""
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "−")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str,
    numeric: Iterable[int] = (),
    shades: Sequence[Sequence[float]] = (),
) -> Markup:
    """A table that reads the same without a style sheet (code hosts and mail strip those); cells are escaped.

    Args:
        numeric: columns set flush right. shades: how dark each cell is, 0 to 1, row by row, where that says something.
    """
    right = set(numeric)

    def cell(tag: str, row: int, column: int, content: Any) -> Markup:
        side = "right" if column in right else "left"
        style = f"text-align:{side};padding:4px 10px;border-bottom:1px solid #ddd;vertical-align:top"
        shade = shades[row][column] if row < len(shades) and tag == "td" else 0.0
        if shade > 0.02:
            style += f";background:rgba(0,114,178,{0.5 * min(1.0, shade):.2f})"
        scope = Markup(' scope="col"') if tag == "th" else ""
        return Markup('<{0}{1} style="{2}">{3}</{0}>').format(Markup(tag), scope, style, content)

    top = Markup("").join(cell("th", 0, i, c) for i, c in enumerate(head))
    body = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup("").join(cell("td", r, i, c) for i, c in enumerate(row)))
        for r, row in enumerate(rows)
    )
    return Markup(
        '<div class="scroll"><table style="border-collapse:collapse;font-variant-numeric:tabular-nums">\n'
        '<caption style="text-align:left;padding:4px 0;color:#444">{}</caption>\n<thead><tr>{}</tr></thead>\n'
        "<tbody>\n{}\n</tbody></table></div>"
    ).format(caption, top, body)


def image(content: bytes, mime: str, *, alt: str, caption: str = "") -> Markup:
    """A figure that is part of the page; ``alt`` carries its key numbers to readers who cannot see it."""
    said = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup('<figure><img src="{}" alt="{}" style="max-width:100%;height:auto">{}</figure>').format(
        data_uri(content, mime), alt, said
    )


def paragraph(text: str, *args: Any, **kwargs: Any) -> Markup:
    """``<p>`` of a trusted format string and escaped arguments."""
    return Markup("<p>" + text + "</p>").format(*args, **kwargs)


@lru_cache(maxsize=4)
def template(name: str) -> Any:
    """A template of this package; everything put into it is escaped unless it is markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("circuits.views", "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


def encoded(page: str) -> bytes:
    """UTF-8; what has no UTF-8 form (a lone surrogate in a file's name, say) becomes a visible escape."""
    return page.encode("utf-8", errors="backslashreplace")
