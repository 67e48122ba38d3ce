"""A stretch of text with a pattern marked in it: what a head read, where it stood, and what came next."""

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

MARKS = {
    "source": "background:#bfe0f5;border-bottom:2px dotted #0072b2",
    "destination": "background:#ffe0a3;border-bottom:2px solid #b36b00",
    "out": "background:#c3ecd9;border-bottom:2px double #007a56;font-weight:bold",
}
"""Colour and underline of each mark: they differ without colour too."""
AROUND = 8
"""Tokens shown on either side of a mark."""
_TOKEN = Markup('<span style="padding:0 1px;border-right:1px solid #e4e4e4">{}</span>')
_MARKED = Markup('<mark title="{}" style="padding:0 1px;color:inherit;{}">{}</mark>')


def legend() -> Markup:
    """What the marks mean."""
    return Markup(" ").join(_MARKED.format(name, style, name) for name, style in MARKS.items())


def passage(labels: Sequence[str], marks: Mapping[int, str], *, around: int = AROUND) -> Markup:
    """Tokens of a text around its marked places, the marked ones highlighted; what lies between is left out with ``…``.

    Args:
        labels: every token of the text, as shown. marks: a name of ``MARKS`` for each marked position.
    """
    shown = sorted({i for place in marks for i in range(max(0, place - around), min(len(labels), place + around + 1))})
    parts = [Markup("… ")] if shown and shown[0] > 0 else []
    for previous, i in zip([shown[0], *shown], shown, strict=False):
        if i - previous > 1:
            parts.append(Markup(" … "))
        parts.append(_MARKED.format(marks[i], MARKS[marks[i]], labels[i]) if i in marks else _TOKEN.format(labels[i]))
    if shown and shown[-1] < len(labels) - 1:
        parts.append(Markup(" …"))
    style = "font:12.5px/1.9 ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;overflow-wrap:anywhere;max-width:110ch"
    return Markup('<p style="{}">{}</p>').format(style, Markup("").join(parts))


def places_of(tokens: Sequence[int], query: int, sources: Iterable[int], *, contiguous: bool, bos: int = 0) -> dict[int, str]:
    """Where a pattern stands in an example: its sources, its destination at ``query``, and out behind it.

    Args:
        tokens: of the example. query: of the destination. sources: the tokens of the sources, the nearest first.
        contiguous: whether they stand right before it; otherwise each is marked where it stands nearest to it.
    """
    marks = {}
    for distance, source in enumerate(sources, start=1):
        places = [query - distance] if contiguous else range(query - 1, bos, -1)
        found = next((i for i in places if i > bos and tokens[i] == source), None)
        if found is not None:
            marks[found] = "source"
    return marks | {query: "destination"} | ({query + 1: "out"} if query + 1 < len(tokens) else {})
