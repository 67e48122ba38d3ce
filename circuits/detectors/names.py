"""The classic demonstration of induction: a made-up name, seen once, is completed when it comes again.

A prompt is ``[BOS] text name text stem``: held-out text around a name no training text holds, and at the end the name's
first tokens. It counts as completed if greedy decoding gives every remaining token; beside that stands the share of
remaining tokens that are the likeliest next one after the true ones before them. In the control the first occurrence
has its tokens in another order, so the same tokens are in the context but nothing there says how the name goes on: what
n-gram statistics, or a preference for tokens already seen, can do without induction. Chance is that control's rate.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.protocol import check_finite, check_model, check_tokens, device_of, model_hash, undisturbed
from circuits.results import array_hash, labelled, mean_and_stderr

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "h", "k", "kr", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v", "z")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
CODAS = ("", "l", "m", "n", "r", "s", "th", "x", "rk", "nd")


def made_up_names(count: int, *, seed: int = 0) -> list[str]:
    """different two-syllable names such as ``Traildral``."""
    rng = np.random.default_rng([seed, 20])
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = ["".join(str(rng.choice(part)) for part in (ONSETS, VOWELS, CODAS)) for _ in range(2)]
        names["".join(syllables).capitalize()] = None
    return list(names)


def wilson_interval(successes: int, trials: int, *, z: float = 1.96) -> tuple[float, float]:
    """The 95% score interval of a rate; unlike the normal one it is right at 0 and 1. Source: Wilson 1927."""
    rate, share = successes / trials, z * z / trials
    centre = (rate + share / 2) / (1 + share)
    half = z / (1 + share) * (rate * (1 - rate) / trials + share / (4 * trials)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class NamePrompts:
    """Prompts of one length. ``answer`` is how many tokens at the end are to be completed.

    Attributes:
        exact, shuffled: ``[name, pos]``, the whole sequence with the answer, and its control.
        answer: ``[name]``. names: as text.
    """

    exact: Int[Tensor, "name pos"]
    shuffled: Int[Tensor, "name pos"]
    answer: Int[Tensor, "name"]
    names: tuple[str, ...]


def name_prompts(
    tokenizer: "Tokenizer", text: Int[Tensor, "example pos"], *, count: int = 200, stem: int = 2, seed: int = 0
) -> NamePrompts:
    """Put made-up names into held-out text, the second time at the end.

    Args:
        text: held-out sequences ``[example, pos]`` with BOS first, e.g. ``run.evaluation["prose"]``.
        count: names. stem: tokens of the name given the second time.

    Raises:
        ValueError: the text is too short to hold a name twice, or the tokenizer cuts names into too few tokens.
    """
    if text.shape[1] < 48:
        raise ValueError(
            f"the text has {text.shape[1]} tokens a sequence, a name twice in context needs at least 48: pass longer ones"
        )
    rng = np.random.default_rng([seed, 21])
    length = text.shape[1] - 1
    rows: dict[str, list[Tensor]] = {"exact": [], "shuffled": []}
    answers, used = [], []
    for name in made_up_names(4 * count, seed=seed):
        ids = tokenizer.encode(" " + name, add_special_tokens=False).ids
        if len(ids) < stem + 2 or len(set(ids)) < len(ids) or len(used) == count:
            continue
        order = derangement(len(ids), rng)
        filler = text[int(rng.integers(len(text))), : length - 2 * len(ids)]
        place = int(rng.integers(8, len(filler) - 8))
        for kind, first in (("exact", ids), ("shuffled", [ids[i] for i in order])):
            rows[kind].append(torch.cat([filler[:place], torch.tensor(first), filler[place:], torch.tensor(ids)]))
        answers.append(len(ids) - stem)
        used.append(name)
    if len(used) < count:
        raise ValueError(
            f"only {len(used)} of {count} names have {stem + 2} or more different tokens: use a smaller stem or count"
        )
    return NamePrompts(torch.stack(rows["exact"]), torch.stack(rows["shuffled"]), torch.tensor(answers), tuple(used))


def derangement(size: int, rng: np.random.Generator) -> list[int]:
    """A random order in which no two neighbours stand as before: no bigram of the name survives."""
    while True:
        order = rng.permutation(size).tolist()
        if all(b != a + 1 for a, b in pairwise(order)):
            return order


@dataclass(frozen=True)
class NameCompletion:
    """Share of made-up names completed greedily, and of their tokens: ``Dataset(condition)``, exact and shuffled."""

    prompts: NamePrompts = field(compare=False)
    name: str = field(default="name_completion", init=False)
    version: int = field(default=1, init=False)

    def spec(self) -> dict[str, Any]:
        return {"prompts": array_hash(self.prompts.exact, self.prompts.shuffled, self.prompts.answer)}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value`` (share of names completed, in [0, 1]), ``stderr``, Wilson's 95% ``low`` and ``high``; ``token_rate``,
            the share of remaining tokens that are right, averaged over names, and ``token_rate_stderr``; and
            ``completed [condition, name]``.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or prompts of another tokenizer or context.
        """
        check_model(model)
        check_finite(model)
        shares = []
        for tokens in (self.prompts.exact, self.prompts.shuffled):
            check_tokens(tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by="name completion")
            shares.append(self._share_right(model, tokens).numpy())
        # Greedy decoding gives the whole name exactly if every token of it is the likeliest after its true predecessors.
        completed = [share == 1.0 for share in shares]
        rates = np.mean(completed, axis=1)
        per_token = [mean_and_stderr(share) for share in shares]
        count = len(self.prompts.names)
        bounds = [wilson_interval(int(c.sum()), count) for c in completed]
        each = ("condition",)
        return labelled(
            {
                "value": (each, rates),
                "stderr": (each, np.sqrt(rates * (1 - rates) / count)),
                "low": (each, [low for low, _ in bounds]),
                "high": (each, [high for _, high in bounds]),
                "token_rate": (each, [mean for mean, _ in per_token]),
                "token_rate_stderr": (each, [error for _, error in per_token]),
                "completed": (("condition", "name"), completed),
            },
            {"condition": ["exact", "shuffled"], "name": list(self.prompts.names)},
            measure=self,
            definition="greedy decoding gives every remaining token of a name seen once before",
            source="after Olsson et al. 2022; names and shuffled control ours",
            model_hash=model_hash(model),
            data_hash=array_hash(self.prompts.exact),
            n_examples=count,
        )

    def _share_right(self, model: Any, tokens: Int[Tensor, "name pos"]) -> Float[Tensor, "name"]:
        """Share of each name's remaining tokens that are the likeliest next token after those before them."""
        with undisturbed(model):
            guess = torch.cat([model(part).argmax(-1).cpu() for part in tokens.to(device_of(model)).split(50)])
        right = guess[:, :-1] == tokens[:, 1:]
        place = torch.arange(right.shape[1])
        is_answer = place >= right.shape[1] - self.prompts.answer[:, None]
        return (right & is_answer).sum(1).double() / self.prompts.answer
