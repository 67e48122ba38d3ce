"""What every head reads of token and position embeddings, and what it writes for the unembedding."""

import numpy as np
from markupsafe import Markup

from circuits.dynamics.weigh import weight_measure
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, paragraph, probability, spread, table, z_score
from circuits.views.sections import Results, Section, Wanted
from circuits.views.standing import ALPHA


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(weight_measure(run, "embedding_composition"), last=True)]


def render(run: Checkpoints, results: Results) -> str:
    """The table of all heads at the last step, random orientation below."""
    found = results["embedding_composition"]
    step = last_measured(found)
    end = found.sel(step=step).transpose("part", "layer", "head", ...)
    kept = [str(part) for part in end["part"].values if np.isfinite(end["value"].sel(part=part).values).any()]
    two_lines = Markup("{}<br><small>z {}, q {}</small>")
    rows, shades = [], []
    for layer in end["layer"].values:
        for head in end["head"].values:
            cells = [end.sel(layer=layer, head=head, part=part) for part in kept]
            rows.append(
                (
                    Markup("<b>{}</b>").format(Head(int(layer), int(head))),
                    *(
                        two_lines.format(decimal(float(c["value"])), z_score(float(c["z"])), probability(float(c["q"])))
                        for c in cells
                    ),
                )
            )
            shades.append([0.0, *(float(c["value"]) if float(c["q"]) < ALPHA else 0.0 for c in cells)])
    nulls = [end.sel(part=part) for part in kept]
    rows.append(
        (
            "random orientation",
            *(
                Markup("{}<br><small>sd {}</small>").format(
                    decimal(float(n["null_mean"].mean()), 4), spread(float(np.sqrt((n["null_sd"] ** 2).mean())), 5)
                )
                for n in nulls
            ),
        )
    )
    return Markup("\n").join(
        [
            paragraph(
                "The composition score with an embedding in the place of the writing head: how much of what a head reads as "
                "query, key or value is what token embeddings (embed) or position embeddings (position) hold; and how much "
                "of what a head writes the unembedding reads. Embeddings fill every dimension, so the score differs from "
                "chance by how unevenly they do: it is high where a head reads the few directions in which tokens differ "
                "most, low where it reads what tokens hardly use, such as what earlier heads write. The null is random "
                "orientation, as above; p is of its upper tail, so that only high scores can have a small q."
            ),
            table(
                ("head", *kept), rows, numeric=range(1, len(kept) + 1), shades=shades,
                caption=f"Step {count(step)}: score, and z and q of its square against random orientation; darker the larger, "
                f"where q < {ALPHA}. Below: mean and sd of the squared score in random orientation, over heads.",
            ),
        ]
    )  # fmt: skip


SECTION = Section("embeddings", "Heads and embeddings", 46, measures, render)
