"""Attention of the strongest heads at the last checkpoint, on repeated random tokens and on text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.data.tokens import repeated_random_tokens
from circuits.detectors.classify import NO_ROLE
from circuits.dynamics.detect import attention_measure
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.attention import AttentionView, patterns_of
from circuits.views.formation import last_measured, strongest
from circuits.views.html import count, image, paragraph, script_json, token_labels
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    from torch import Tensor

MOST_HEADS = 4
LONGEST_COPY = 20
LONGEST_TEXT = 64


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(attention_measure(run))]


def render(run: Checkpoints, results: Results) -> str:
    """One interactive view for each sequence, with a picture in its place on paper and without scripts."""
    step = last_measured(results["attention_scores"])
    heads = shown_heads(results, step)
    names = ", ".join(map(str, heads))
    model = run.at(step)
    parts = [
        paragraph(
            "{} at step {}: the strongest induction and previous-token heads, then the heads with the best-supported roles. "
            'Rows are queries and sum to 1. <span class="screen">Hover a head to see it, click to lock; '
            "hover a cell for its value; hover a token to see what it attends to and what attends to it.</span>",
            names,
            count(step),
        )
    ]
    for i, (title, tokens) in enumerate(sequences(run)):
        view = AttentionView(patterns_of(model, tokens, heads, token_labels(run.tokenizer, tokens[0].tolist())))
        data = {"id": f"attention-{i}", "props": view.props(), "labels": view.labels}
        parts += [
            Markup("<h3>{}</h3>").format(title),
            Markup('<div class="attention" id="{}"></div>').format(data["id"]),
            Markup('<script type="application/json" class="attention-data">{}</script>').format(script_json(data)),
            Markup('<div class="static">{}</div>').format(image(view.png(), "image/png", alt=view.alt)),
        ]
    return Markup("\n").join(parts)


def shown_heads(results: Results, step: int) -> list[Head]:
    """The strongest induction head, the strongest previous-token head, then heads by the support of their role."""
    scores, roles = results["attention_scores"].sel(step=step), results["head_roles"].sel(step=step)
    heads = [Head(int(layer), int(head)) for layer in roles["layer"].values for head in roles["head"].values]

    def rank(head: Head) -> tuple[bool, float, Head]:
        here = roles.sel(layer=head.layer, head=head.head)
        return str(here["role"].values) == NO_ROLE, -float(here["support"]), head

    first = [strongest(scores, detector) for detector in ("induction", "previous_token")]
    return list(dict.fromkeys([*first, *sorted(heads, key=rank)]))[:MOST_HEADS]


def sequences(run: Checkpoints) -> "Iterator[tuple[str, Tensor]]":
    """Repeated random tokens, and the start of the run's first evaluation text (code, where it has that)."""
    ids = attention_measure(run).ids
    n = min(LONGEST_COPY, (run.cfg.n_ctx - 1) // 2)
    allowed = run.cfg.d_vocab if ids is None else np.asarray(ids)
    yield f"Random tokens twice: [BOS, r, r], {n} tokens each", repeated_random_tokens(allowed, n=n, examples=1, seed=0).tokens
    text = [kind for kind in run.evaluation if kind != "brackets" and not kind.startswith("shuffled")]
    if text:
        kind = "code" if "code" in text else text[0]
        yield f"Held-out text: {kind}", run.evaluation[kind][:1, :LONGEST_TEXT]


SECTION = Section("attention", "Attention of the strongest heads", 40, measures, render)
