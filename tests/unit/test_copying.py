"""Copying scores by hand and by their literal definition: one source, one token, one logit at a time."""

import math

import numpy as np
import pytest
import torch

from circuits.detectors.copying import DETECTORS, CopyingScores, copying_scores
from circuits.detectors.direct_logits import Readout, copying_ratio, own_shares, predicted_mask, sample_effects, share_through
from circuits.models.hooked import HookedTransformer
from circuits.models.patterns import induction_mask, induction_score

CFG = {"n_layers": 2, "d_model": 12, "n_heads": 2, "d_head": 4, "n_ctx": 32, "d_vocab": 40, "attn_only": True, "seed": 3}
FEW = CopyingScores(examples=4, groups=2, null_seeds=0)


def trained_like(**changes) -> HookedTransformer:
    """Random weights with attention far from uniform, and gains, shifts and biases that are not those of an untrained model."""
    model = HookedTransformer(CFG | changes).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".W_Q" in name or ".W_K" in name:
                weight.mul_(1.5)
            elif ".b_" in name or ".ln" in name or name.startswith("ln"):
                weight.add_(torch.randn(weight.shape, generator=rng, dtype=weight.dtype), alpha=0.5)
    return model


def one_by_one(model: HookedTransformer, sets: dict[str, torch.Tensor], bos: bool, predicted: int) -> dict[str, np.ndarray]:
    """The definitions of the module's docstring, written out; effects are differences of logits under a frozen final norm."""
    found = {detector: [] for detector in DETECTORS}
    norm = model.cfg.normalization_type
    for which, tokens in sets.items():
        _, cache = model.run_with_cache(tokens)
        scale = cache["ln_final.hook_scale"] if norm else torch.ones(*tokens.shape, 1)

        def logits(stream, sigma):
            final = model.ln_final
            if norm:
                x = stream - stream.mean() if norm.startswith("LN") else stream
                stream = x / sigma * (1 if final.w is None else final.w) + (0 if final.b is None else final.b)
            return stream @ model.W_U + model.b_U

        per = {detector: np.full((len(tokens), 2, 2), np.nan) for detector in DETECTORS}
        for e, layer, h in np.ndindex(len(tokens), 2, 2):
            x, A = tokens[e].tolist(), cache["pattern", layer][e, h]
            written = [cache["v", layer][e, k, h] @ model.blocks[layer].attn.W_O[h] for k in range(len(x))]
            last, resid = cache["resid_post", 1][e], cache["resid_pre", layer][e]

            def effect(i, k, last=last, written=written, A=A, sigma=scale[e]):
                """Centred change of the logits at query i by what comes from key k."""
                change = logits(last[i], sigma[i]) - logits(last[i] - A[i, k] * written[k], sigma[i])
                return change - change.mean()

            if which == "sample":
                sample = range(int(bos), len(x))
                for sign, detector in ((1, "copying"), (-1, "anti_copying")):
                    ratios = []
                    for i in sample:
                        raised = {k: (sign * effect(i, k)).clamp_min(0) for k in sample if k <= i}
                        own = sum(float(r[x[k]]) for k, r in raised.items())
                        total = own + sum(float(r[[x[t] for t in sample]].sum()) for r in raised.values())
                        ratios.append(own / total if total > 0 else 1 / (len(sample) + 1))
                    per[detector][e, layer, h] = 4 * np.mean(ratios) - 1
            targets = {"ov_induction": [], "copy_suppression": []}
            for i in range(len(x)):
                lens = resid[i] - resid[i].mean() if norm and norm.startswith("LN") else resid[i]
                guess = logits(resid[i], (lens.pow(2).mean() + model.cfg.eps).sqrt())
                targets["ov_induction"].append([k for k in range(2, i + 1) if x[k - 1] == x[i]])
                targets["copy_suppression"].append([k for k in range(1, i) if (guess > guess[x[k]]).sum() < predicted])
            for sign, detector in ((1, "ov_induction"), (-1, "copy_suppression")):
                rows = [(i, ks) for i, ks in enumerate(targets[detector]) if ks]
                each = []
                for i, ks in rows:
                    shares = {k: effect(i, k)[x[k]] / effect(i, k).abs().max() for k in ks}
                    each.append(sign * sum(float(A[i, k] * s) for k, s in shares.items()))
                per[detector][e, layer, h] = np.mean(each) if each else np.nan
        for detector in {"sample": DETECTORS[:2], "repeats": DETECTORS[2:3], "text": DETECTORS[3:]}[which]:
            found[detector].append(per[detector])
    return {detector: np.concatenate(parts) for detector, parts in found.items()}


@pytest.mark.parametrize(("norm", "bos"), [("LN", True), ("LNPre", False), ("RMS", True), (None, True)])
def test_all_scores_are_their_literal_definition(norm: str | None, bos: bool):
    model = trained_like(normalization_type=norm, dtype="float64", n_ctx=16)
    sets = {
        "sample": torch.stack([torch.randperm(39, generator=torch.Generator().manual_seed(e))[:8] + 1 for e in range(2)]),
        "repeats": torch.tensor([[0, 5, 6, 7, 5, 6, 7, 9], [0, 8, 3, 2, 1, 8, 3, 4]]),
        "text": torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(1)),
    }
    if bos:
        sets["sample"][:, 0] = 0
    with torch.no_grad():
        expected = one_by_one(model, sets, bos, predicted=8)
    scores, _ = copying_scores(model, sets, bos=bos, predicted=8)
    for detector in DETECTORS:
        assert np.allclose(scores[detector], expected[detector], atol=1e-10, equal_nan=True), detector
        spread = np.ptp(expected[detector][np.isfinite(expected[detector])])
        assert spread > 0.01, f"{detector} holds nothing to compare"


def test_the_ratio_by_hand():
    """Three tokens; the head attends to the second alone, which raises itself by 2, the first by 1 and lowers the third."""
    pattern = torch.zeros(1, 1, 3, 3)
    pattern[..., 1] = 1.0
    effects = torch.zeros(1, 1, 3, 3)
    effects[0, 0, 1] = torch.tensor([1.0, 2.0, -3.0])
    assert copying_ratio(pattern, effects).item() == pytest.approx(4 * 2 / (2 + 3) - 1)
    assert copying_ratio(pattern, -effects).item() == -1.0  # what is lowered is the third, which is not attended to
    only_itself = torch.diag_embed(torch.ones(1, 1, 3))
    broad = torch.full((1, 1, 3, 3), 1 / 3)
    assert copying_ratio(broad, only_itself).item() == pytest.approx(1.0)
    assert copying_ratio(broad / 7, only_itself).item() == pytest.approx(1.0)  # what rests on BOS is left out


def test_all_raised_alike_and_nothing_raised_are_chance():
    pattern = torch.full((1, 1, 24, 24), 1 / 24)
    for alike in (torch.ones(1, 1, 24, 24), torch.zeros(1, 1, 24, 24)):
        assert copying_ratio(pattern, alike).item() == pytest.approx(4 / 25 - 1)


def test_shares_by_hand():
    W = torch.eye(3) - 1 / 3
    v = torch.tensor([[[1.0, 0, 0]], [[-2.0, 0, 0]], [[0, 1.0, -3.0]], [[0, 0, 0]]])  # one head, four sources
    shares = own_shares(v, torch.eye(3)[None], W, torch.tensor([0, 0, 1, 2]))
    # The third writes logits (0, 1, -3), less their mean (2/3, 5/3, -7/3); the last writes nothing.
    assert shares[:, 0].tolist() == pytest.approx([1.0, -1.0, 5 / 7, 0.0])


def test_attention_on_targets_is_weighed_by_their_shares():
    pattern = torch.tensor([[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]]])[None]
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 2, 1] = mask[0, 3, 1] = mask[0, 3, 2] = True
    shares = torch.tensor([0.0, 0.5, -1.0, 1.0])[None, :, None]
    found = share_through(pattern, mask, shares)
    assert found.item() == pytest.approx((0.3 * 0.5 + 0.2 * 0.5 - 0.3) / 2)
    assert math.isnan(share_through(pattern, torch.zeros_like(mask), shares).item())


def test_a_share_of_one_gives_the_attention_score():
    """OV-supported induction is the induction score where every source does nothing but raise its token."""
    model = trained_like()
    tokens = FEW.tokens_for(32, 40)["repeats"]
    _, cache = model.run_with_cache(tokens)
    ones = torch.ones(*tokens.shape, 2)
    found = share_through(cache["pattern", 1], induction_mask(tokens), ones)
    assert torch.allclose(found, induction_score(cache["pattern", 1], tokens))


def test_predicted_tokens_are_earlier_ones_among_the_likeliest():
    readout = Readout(torch.eye(5), torch.zeros(5), None)
    tokens = torch.tensor([[0, 3, 1, 3, 2]])
    resid = torch.zeros(1, 5, 5)
    resid[0, 3] = torch.tensor([0.0, 2.0, 0.0, 3.0, 1.0])  # at position 3: token 3 is likeliest, then 1
    for most, keys in ((1, [1]), (2, [1, 2]), (9, [1, 2])):  # position 3 itself holds a 3 and is no earlier one
        assert predicted_mask(resid, readout, tokens, most)[0, 3].nonzero()[:, 0].tolist() == keys
    assert predicted_mask(resid, readout, tokens, 1)[0, 4].tolist() == [False, True, True, True, False]  # ties are all in


def test_the_readout_gives_the_models_logits():
    for norm in ("LN", "LNPre", "RMS", "RMSPre", None):
        model = trained_like(normalization_type=norm, dtype="float64")
        tokens = torch.randint(1, 40, (2, 12), generator=torch.Generator().manual_seed(0))
        logits, cache = model.run_with_cache(tokens)
        found = Readout.of(model).lens(cache["resid_post", 1].flatten(0, 1)).view_as(logits)
        assert torch.allclose(found - found.mean(-1, keepdim=True), logits - logits.mean(-1, keepdim=True), atol=1e-12)


def test_effects_sum_to_what_the_head_does_to_the_logits():
    model = trained_like(dtype="float64")
    tokens = torch.randint(1, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    effects = sample_effects(cache["v", 1], model.W_O[1], Readout.of(model).W, tokens)
    through = torch.einsum("ehqk,ehks->ehqs", cache["pattern", 1], effects)
    out = torch.einsum("eqhr,hrm->ehqm", cache["z", 1], model.W_O[1])
    whole = (out - out.mean(-1, keepdim=True)) * model.ln_final.w @ model.W_U
    whole = whole - whole.mean(-1, keepdim=True)
    at_sample = whole.gather(-1, tokens[:, None, None].expand(2, 2, 12, 12))
    assert torch.allclose(through, at_sample, atol=1e-12)


def test_two_calls_agree_exactly_and_precision_hardly_matters():
    a, b = FEW(trained_like()), FEW(trained_like())
    assert a.identical(b)
    assert np.allclose(FEW(trained_like().double()).value, a.value, atol=1e-4)


def test_what_the_dataset_holds():
    found = CopyingScores(examples=4, groups=2, null_seeds=2)(trained_like())
    assert dict(found.value.sizes) == {"layer": 2, "head": 2, "detector": 4}
    assert found.chance.values.tolist() == [4 / 26 - 1, 4 / 26 - 1, 0.0, 0.0]
    assert (found.rows.sel(detector="copying") == 4 * 25).all()
    assert np.allclose(found.z, (found.value - found.null_mean) / found.null_sd)
    assert (np.abs(found.value) <= 1).all() and (found.stderr > 0).any()
    assert FEW(trained_like()).z.isnull().all()


def test_a_score_without_a_query_is_missing_and_says_so():
    """Logits equal everywhere make every token predicted; a bias that prefers BOS makes none."""
    model = HookedTransformer(CFG).eval()
    with torch.no_grad():
        model.b_U[0] = 1e6
    found = CopyingScores(examples=2, groups=2, null_seeds=0, predicted=1)(model).sel(detector="copy_suppression")
    assert found.rows.values.tolist() == [0, 0] and found.value.isnull().all() and found.stderr.isnull().all()


def test_text_is_read_for_copy_suppression_alone():
    text = torch.randint(1, 40, (20, 24), generator=torch.Generator().manual_seed(0))
    with_text = CopyingScores(examples=4, groups=2, null_seeds=0, tokens=text)
    assert with_text.spec() != FEW.spec()
    a, b = with_text(trained_like()), FEW(trained_like())
    for detector in DETECTORS[:3]:
        assert a.sel(detector=detector).value.equals(b.sel(detector=detector).value)
    assert not a.sel(detector="copy_suppression").value.equals(b.sel(detector="copy_suppression").value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"examples": 1}, "examples=1: need a whole number of at least 2"),
        ({"groups": True}, "groups=True: need a whole number"),
        ({"predicted": 0}, "predicted=0: need a whole number of at least 1"),
        ({"seed": -1}, "seed=-1: need a whole number of at least 0"),
        ({"bos": 1}, "bos=1: need True or False"),
        ({"ids": [1, 1]}, "ids name a token twice"),
        ({"tokens": torch.ones(2, 2).long()}, "2 tokens, copy suppression needs at least 3"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_cannot_be_meant(options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        CopyingScores(**options)


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"d_vocab_out": 5}, {}, "reads 40 tokens and predicts 5: copying needs one vocabulary"),
        ({"n_ctx": 8}, {}, "n_ctx = 8 tokens"),
        ({"d_vocab": 20}, {}, "19 token ids are allowed"),
        ({}, {"ids": tuple(range(1, 90))}, "ids run from 1 to 89, the vocabulary is 0..39"),
        ({}, {"tokens": torch.full((2, 20), 99)}, "run from 99 to 99, the vocabulary is 0..39"),
        ({"n_heads": 1}, {"null_seeds": 1}, "has no spread: use null_seeds=2"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_models_that_do_not_fit(changes: dict, options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        CopyingScores(**options)(HookedTransformer(CFG | changes))
