"""Whether refined coefficients say more of heads than measures that cost less, in sentences.

Of each layer: k-means of standardised curves, as claim C11 has it, against the same of ``CHEAPER`` measures.

    found       clusters of the coefficient's curves agree with roles beyond chance, and the difference of their index from that
                of every cheaper measure has an interval above 0
    not found   no agreement, and the interval of the index stays below ``ASKED``; or that difference has, for a cheaper measure,
                an interval below 0
    undecided   else
"""

from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.partitions import UNTESTABLE
from circuits.views.finding import RLLC, ROLES, Finding, Verdict, lacking, listed, within
from circuits.views.html import count, decimal, probability
from circuits.views.sections import Results

if TYPE_CHECKING:
    import xarray as xr

ANCHOR = "clusters"
CLUSTERING, SCALING = "kmeans", "standardised"
CHEAPER = {
    "hessian_trace": "Hessian trace",
    "fisher_trace": "Fisher trace",
    "noise_loss": "loss under noise",
    "weight_norm": "norm of weights",
    "ablation_loss": "loss by ablation",
}
ASKED = 0.6
"""The index that claim C11 asks for."""


def more_than_cheaper(results: Results) -> list[Finding]:
    """Each layer's clusters beside those of the best cheaper measure, and all layers in a sentence."""
    if "clusters" not in results:
        return [lacking("Whether coefficients say more than cheaper measures", ANCHOR, ROLES, RLLC)]
    data = results["clusters"].sel(clustering=CLUSTERING, scaling=SCALING)
    layers = {int(layer): _layer(data.sel(layer=layer), int(layer)) for layer in data["layer"].values}
    return [_in_all(layers, _rivals(data)), *layers.values()]


def _rivals(data: "xr.Dataset") -> list[str]:
    return [name for name in CHEAPER if name in data["curve"].values]


def _layer(data: "xr.Dataset", layer: int) -> Finding:
    own, where = data.sel(curve="rllc"), f"Layer {layer}: clusters of the coefficients’ curves"
    if str(own["state"].values) != "ok":
        return Finding(f"{where} have nothing to be compared with: {own['state'].values}.", "undecided", ANCHOR)
    rivals = data.sel(curve=_rivals(data))
    rivals = rivals.isel(curve=np.flatnonzero((rivals["state"].values == "ok") & np.isfinite(rivals["value"].values)))
    p, smallest, high = (float(own[name]) for name in ("p", "smallest_p", "high"))
    verdict = str(own["verdict"].values)
    judged: Verdict = "undecided"
    if verdict == UNTESTABLE:
        text = f"cannot be told from chance here, whatever they are: the smallest p to be had is {probability(smallest)}"
    elif verdict != "agree":
        judged = "not found" if high < ASKED else "undecided"
        text = "do not agree with roles beyond chance"
        text += "" if high < ASKED else f", though errors of the curves leave an index of up to {decimal(high, 2)} open"
    else:
        text, judged = _against(rivals)
    index = within(own)
    basis = f"adjusted Rand index {index}, p {probability(p, smallest)}; {_best(rivals)}"
    return Finding(f"{where} {text}.", judged, ANCHOR, basis)


def _against(rivals: "xr.Dataset") -> tuple[str, Verdict]:
    """What curves that agree with roles have over cheaper ones."""
    agree = "agree with roles beyond chance"
    if not rivals.sizes["curve"]:
        return f"{agree}; no cheaper measure is there to compare them with", "undecided"
    better = rivals["curve"].values[rivals["difference_high"].values < 0]
    if len(better):
        return f"{agree}, but those of {_words(better)} agree better", "not found"
    if (rivals["difference_low"].values > 0).all():
        return f"{agree}, and better than those of every cheaper measure", "found"
    level = rivals["curve"].values[~(rivals["difference_low"].values > 0)]
    return f"{agree}; that they do better than those of {_words(level)} is not shown", "undecided"


def _best(rivals: "xr.Dataset") -> str:
    """The cheaper measures with the highest index."""
    if not rivals.sizes["curve"]:
        return "no cheaper measure"
    best = rivals.isel(curve=np.flatnonzero(rivals["value"].values == rivals["value"].values.max()))
    one = best.isel(curve=int(np.argmin(best["p"].values)))
    p, value = probability(float(one["p"]), float(one["smallest_p"])), decimal(float(one["value"]), 2)
    gap = within(one, "difference", "difference_low", "difference_high")
    return f"best of the cheaper: {_words(best['curve'].values)}, {value}, p {p}; the coefficient’s less that: {gap}"


def _words(names: np.ndarray) -> str:
    return listed([CHEAPER[str(name)] for name in names])


def _in_all(layers: dict[int, Finding], rivals: list[str]) -> Finding:
    """In which layers the coefficient has something over the cheaper measures."""
    above = [str(layer) for layer, finding in layers.items() if finding.verdict == "found"]
    names = _words(np.array(rivals)) if rivals else "no measure"
    if above:
        text = f"Coefficients’ curves sort heads by role better than {names} in layer {listed(above)} of {count(len(layers))}."
        return Finding(text, "found", ANCHOR)
    text = f"In no layer is it shown that coefficients’ curves sort heads by role better than cheaper measures ({names})."
    decided = all(finding.verdict == "not found" for finding in layers.values())
    return Finding(text, "not found" if decided else "undecided", ANCHOR)
