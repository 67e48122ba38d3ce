"""Look at attention: a picture that survives everywhere, and an interactive view that needs no network.

Convention: patterns are ``[query, key]``; row ``q`` says where position ``q`` attends and sums to 1. A value-weighted
pattern is ``A[q, k] * ||v_k||`` with ``v_k`` the head's value vector: it takes out attention that rests on keys with
little to move (elsewhere called info-weighted attention; Kobayashi et al. 2020 weight by ``||W_O v_k||`` instead).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup

from circuits.models.heads import Head
from circuits.models.protocol import check_model, check_tokens, device_of, pattern_name, undisturbed, value_name
from circuits.views.html import POLICY, data_uri, encoded, packed_bundle, script_json, shortened, template, token_labels

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

MOST_TOKENS = 256
Weighting = Literal[False, True, "renormalised"]


def view(
    model: Any,
    tokens: "Tensor",
    head: Any,
    *,
    tokenizer: Any = None,
    value_weighted: Weighting = False,
    height: int = 600,
) -> "AttentionView":
    """Show where heads attend on one sequence.

    As the last line of a notebook cell (or through ``display``) it gives a PNG and then, as an output of its own, an
    interactive view: hover a head, click to lock it; hover a cell for its value; hover a token to see what it attends
    to and what attends to it, click to lock. ``CIRCUITS_RENDERER=png`` leaves the PNG alone.

    Args:
        model: a hooked model.
        tokens: ids ``[pos]`` or ``[1, pos]``, at most 256.
        head: one head (``"L0H3"``, ``(0, 3)``, ...), a list of heads, or a layer's number for all its heads.
        tokenizer: shows ids as text (default: the model's own, if it has one).
        value_weighted: True for ``A[q, k] * ||v_k||``; ``"renormalised"`` divides each row of that by its sum.
        height: of the interactive view, in CSS pixels.

    Raises:
        TypeError, ValueError: not a hooked model, no such head, more than 256 tokens, or tokens the model cannot read.
    """
    check_model(model)
    heads = heads_of(head, model.cfg)
    sequence = tokens[None] if hasattr(tokens, "ndim") and tokens.ndim == 1 else tokens
    check_tokens(sequence, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, device=device_of(model), needed_by="view")
    if sequence.shape[0] != 1:
        raise ValueError(f"tokens hold {sequence.shape[0]} sequences, view shows one: pass tokens[0]")
    if sequence.shape[1] > MOST_TOKENS:
        raise ValueError(
            f"the sequence has {sequence.shape[1]} tokens, view shows at most {MOST_TOKENS}: pass tokens[:{MOST_TOKENS}]"
        )
    if value_weighted not in (False, True, "renormalised"):
        raise ValueError(f"value_weighted is {value_weighted!r}; give False, True or 'renormalised'")
    if not 200 <= height <= 4000:
        raise ValueError(f"height is {height}; give 200 to 4000 pixels")
    if tokenizer is not None and not hasattr(tokenizer, "decode"):
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}, need an object with decode(ids), e.g. run.tokenizer")
    labels = token_labels(getattr(model, "tokenizer", None) if tokenizer is None else tokenizer, sequence[0].tolist())
    return AttentionView(patterns_of(model, sequence, heads, labels, value_weighted), height)


def heads_of(given: Any, cfg: Any) -> list[Head]:
    """The heads that ``given`` names: one, a list of them, or all of a layer.

    Raises:
        TypeError, ValueError: it names none, or one the model does not have.
    """
    if type(given) is int:
        if not 0 <= given < cfg.n_layers:
            raise ValueError(f"there is no layer {given}: the model has layers 0..{cfg.n_layers - 1}")
        return [Head(given, h) for h in range(cfg.n_heads)]
    if isinstance(given, Sequence) and not isinstance(given, str) and not all(isinstance(part, int) for part in given):
        return list(dict.fromkeys(Head.parse(one, cfg) for one in given))
    return [Head.parse(given, cfg)]


def patterns_of(
    model: Any, tokens: "Tensor", heads: Sequence[Head], labels: Sequence[str], value_weighted: Weighting = False
) -> "xr.Dataset":
    """Patterns of chosen heads on one sequence, ``Dataset(head, query, key)``, from one forward pass.

    Returns:
        ``value``: attention in [0, 1], or value-weighted attention (not bounded by 1 unless renormalised). Coordinate
        ``head`` holds names, ``token`` (over ``key``) the labels.
    """
    import xarray as xr

    found: dict[str, Tensor] = {}

    def keep(activation: "Tensor", hook: Any) -> None:
        found[hook.name] = activation[0].detach().double().cpu()

    layers = sorted({head.layer for head in heads})
    names = [name for layer in layers for name in (pattern_name(layer), *([value_name(layer)] if value_weighted else []))]
    with undisturbed(model), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model(tokens)
    rows = []
    for head in heads:
        pattern = found[pattern_name(head.layer)][head.head]  # [query, key]
        if value_weighted:
            values = found[value_name(head.layer)]  # [pos, head, d_head]; several heads share values where keys are grouped
            shared = model.cfg.n_heads // values.shape[1]
            pattern = pattern * values[:, head.head // shared].norm(dim=-1)
        if value_weighted == "renormalised":
            pattern = pattern / pattern.sum(-1, keepdim=True).clamp_min(1e-300)
        rows.append(pattern.numpy())
    kind = {False: "attention", True: "attention × ‖value‖", "renormalised": "attention × ‖value‖, rows renormalised"}[
        value_weighted
    ]
    positions = np.arange(tokens.shape[1])
    return xr.Dataset(
        {"value": (("head", "query", "key"), np.stack(rows))},
        coords={"head": [str(h) for h in heads], "query": positions, "key": positions, "token": ("key", list(labels))},
        attrs={"measure": kind, "bounded": int(value_weighted is not True)},
    )


@dataclass(frozen=True, repr=False)
class AttentionView:
    """Patterns of one or more heads on one sequence, ready to be shown or saved.

    Attributes:
        patterns: ``Dataset(head, query, key)``. height: of the interactive view, CSS pixels.
    """

    patterns: "xr.Dataset"
    height: int = 600

    def __repr__(self) -> str:
        return f"AttentionView({self.caption})"

    @property
    def labels(self) -> list[str]:
        return [str(token) for token in self.patterns["token"].values]

    @property
    def caption(self) -> str:
        heads = [str(h) for h in self.patterns["head"].values]
        shown = ", ".join(heads) if len(heads) <= 8 else f"{heads[0]} … {heads[-1]}"
        return f"{shown}: {self.patterns.attrs['measure']} on {self.patterns.sizes['key']} tokens, [query, key]"

    @property
    def alt(self) -> str:
        """The picture in words: where each head attends most, the first token aside."""
        said = []
        for name, pattern in zip(self.patterns["head"].values, self.patterns["value"].values, strict=True):
            body = np.tril(pattern)
            body[:, 0] = -1.0
            query, key = np.unravel_index(int(body.argmax()), body.shape)
            first = float(pattern[1:, 0].mean()) if len(pattern) > 1 else 1.0
            said.append(
                f"{name}: most at query {query}, key {key} ({pattern[query, key]:.2f}), mean on the first token {first:.2f}"
            )
        return f"Heat map of {self.patterns.attrs['measure']}. " + "; ".join(said) + "."

    def props(self) -> dict[str, Any]:
        """What circuitsvis' ``AttentionHeads`` is given; values to three digits, its darkest colour at ``maxValue``."""
        value = np.tril(self.patterns["value"].values)
        peak = float(value.max())
        bounded = bool(self.patterns.attrs["bounded"])
        digits = 3 if bounded or peak <= 0 else max(0, 2 - int(np.floor(np.log10(peak))))
        whole = lambda v: int(v) if v == int(v) else v  # noqa: E731 - "0" is shorter than "0.0", and most entries are 0
        return {
            "attention": [[[whole(round(v, digits)) for v in row] for row in pattern] for pattern in value.tolist()],
            "tokens": [shortened(token) for token in self.labels],
            "attentionHeadNames": [str(head) for head in self.patterns["head"].values],
            "maxValue": 1 if bounded else round(peak, digits) or 1,
            "minValue": -1,
            "maskUpperTri": True,
        }

    def png(self) -> bytes:
        from circuits.views.curves import attention_maps, rendered

        return rendered(attention_maps(self.patterns), "png")

    def page(self, *, static: bool = True) -> str:
        """A whole page that needs nothing else; ``static`` adds the picture, for printing and without scripts."""
        return template("view.html").render(
            policy=POLICY, title=self.caption, caption=self.caption, alt=self.alt, height=self.height,
            png=data_uri(self.png(), "image/png") if static else "", packed=packed_bundle(),
            props=script_json(self.props()), labels=script_json(self.labels),
        )  # fmt: skip

    def iframe(self) -> Markup:
        """The page in a sandboxed frame of fixed height: several share a notebook, and none can touch it."""
        style = f"width:100%;height:{self.height}px;border:1px solid #ddd"
        frame = '<iframe srcdoc="{}" sandbox="allow-scripts" title="{}" style="{}"></iframe>'
        return Markup(frame).format(self.page(static=False), self.alt, style)

    def save(self, path: str | Path) -> Path:
        """Write the page as one file that opens offline."""
        from circuits.files import write_whole

        content = encoded(self.page())
        return write_whole(path, lambda aside: aside.write_bytes(content))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": repr(self), "image/png": self.png()}
        return bundle if only_png() else bundle | {"text/html": str(self.iframe())}

    def _ipython_display_(self) -> None:
        """Two outputs: code hosts strip scripts and, in a shared bundle, would prefer the HTML they cannot show."""
        from IPython.display import HTML, Image, display

        display(Image(data=self.png(), format="png", alt=self.alt))
        if not only_png():
            display(HTML(f"<div>{self.iframe()}</div>"))  # IPython warns of HTML that is an iframe and nothing else


def only_png() -> bool:
    """Whether ``CIRCUITS_RENDERER`` asks for pictures only.

    Raises:
        ValueError: it asks for something else.
    """
    asked = os.environ.get("CIRCUITS_RENDERER", "html")
    if asked not in ("png", "html"):
        raise ValueError(f"CIRCUITS_RENDERER is {asked!r}; set it to 'png' or 'html', or unset it")
    return asked == "png"
