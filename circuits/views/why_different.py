"""Why a claim that fails on the shipped runs may hold in its paper: guesses, none of which was tested.

They are of runs by the recipe of ``fixtures/stdlib-2l`` alone: d_model 128, vocabulary 1,024, context 128; 10,000 steps of 4,096
tokens of Python's standard library; half of the sequences carry a repeated span, and half of those spans are random. Beside

    Wang et al. 2024      two layers of 8 heads, d_model 256, context 1,024; 50,000 steps, 5e9 tokens of the Pile; induction comes
                          after 13,000 to 15,000 steps, from text alone
    Elhage et al. 2021    12 heads a layer, d_model 768, context 2,048
    Olsson et al. 2022    the same width, context 8,192, about 1e10 tokens

A claim that is an equality, or that these runs cannot test, has none.
"""

from collections.abc import Mapping

_GUESSES = {
    "C5": "repeats of random tokens, put into the data, reward attention by position early, while in the paper induction came "
    "from text alone, after 13,000 steps",
    "C6": "random repeats teach induction here, while text of 128 tokens rewards context earlier in other ways, such as words "
    "that come again",
    "C7": "induction is taught here and comes at a fifth of training, so that stages which are far apart in the paper overlap",
    "C8": "half the width (d_model 128) leaves heads of the second layer less room to read apart from each other",
    "C9": "training is shorter than the time in which the paper's heads of two layers come together again, and our rule calls "
    "few heads of layer 0 multigram heads",
    "C10": "a layer has few heads of each role here, and our rule of roles is not the paper's",
    "C11": "coefficients change most at the start and at the one taught transition, where all heads change together, and our "
    "rule of roles is not the paper's",
    "C12": "induction is taught here, so that induction heads carry much of the loss, and multigram heads had 4e7 tokens to "
    "memorise from, not 5e9",
    "C13": "there were 4e7 tokens to memorise multigrams from, not 5e9, and the paper's way to count them is not public",
    "C14": "most of the training text is code here, which is the unusual text in the paper, and prose here is documentation "
    "with code in it",
    "C15": "code is what was trained on, so that its shuffled tokens cost much loss, whatever heads do with code",
    "C16": "the second stage is a few hundred steps long here, and the reference of one layer was taught with repeats as well",
    "C17": "nested pairs within 128 tokens of Python are simple enough for one layer",
    "C18": "the loss around the shipped checkpoints is nearly quadratic at the sampler's settings, of which simpler measures "
    "know all",
    "C19": "heads without much to lose have coefficients so close that other settings exchange them",
    "C20": "small models spread a function over another number of heads in each seed",
    "circuits 3": "repeats were put into the data, from which one layer learns what it would not from text",
    "circuits 4": "heads take up other work than copying as training goes on, and the paper's model has 12 heads, a larger "
    "vocabulary and other text",
    "circuits 6": "16 heads, of which few copy, are few for a correlation, and layer norms act in use that weights alone do "
    "not show",
    "circuits 7": "the second layer has 8 heads, so that a single one carries the correlation",
    "circuits 8": "induction is spread over several heads in some seeds, each of which does with less than clear signs; the "
    "bar of 0.7 is this package's",
    "circuits 9": "a few previous-token heads feed several induction heads here, and not by keys alone",
    "circuits 10": "8 heads of 32 dimensions share 128, which is half of what they would need to lie side by side, as the "
    "paper's can",
    "circuits 11": "repeats are in half of the sequences, so that induction, a path through two heads, is worth more than on "
    "the paper's text",
    "circuits 12": "the context is 128 tokens, and several heads make up for each other",
    "circuits 14": "the transition is taught here, early and sharp, while text teaches in-context learning by itself",
    "circuits 16": "repeats reward positions and induction early, while n-grams are learned from few tokens",
    "circuits 19": "several previous-token heads feed one induction head in some seeds, so that the edge from one is not all",
    "circuits 20": "sinusoids reach queries and keys of every layer in these models, which makes other routes easy",
}

WHY_DIFFERENT: Mapping[str, str] = {
    name: f"On the shipped runs it may be because {guess}, which was not tested." for name, guess in _GUESSES.items()
}
"""By the name of a claim: one sentence."""
