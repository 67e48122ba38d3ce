"""Interactions of edges as a measure, and the pairs of closers that they are compared on: numbers counted by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits import Checkpoints, HookedTransformer
from circuits.data.brackets import match_brackets
from circuits.dynamics.nested_pairs import interaction_measures, matched_closers
from circuits.paths.edges import EdgeEffects
from circuits.paths.interactions import Interaction, strongest_edges

V = 5
TEXT = torch.tensor([[0, 1, 2, 3, 1, 2], [0, 3, 3, 1, 4, 2], [0, 2, 4, 4, 1, 3]])
EDGES = ("L0H0 -> L1H0.v", "L0H1 -> L1H0.v")


def copier(gains: tuple[float, float], cap: float = 0.0) -> HookedTransformer:
    """Heads of layer 0 that add ``gain`` times the current token to a slot; layer 1 copies the slot's token to the logits.

    Patterns are as good as the identity: positions find themselves. No norm; so the logit of the current token is the sum of
    the gains, or a saturating function of it with a cap.
    """
    width, length = 2 * V, TEXT.shape[1]
    model = HookedTransformer(
        {
            "n_layers": 2, "d_model": width + length, "n_heads": 2, "d_head": width + length, "n_ctx": length, "d_vocab": V,
            "attn_only": True, "normalization_type": None, "positional_embedding_type": "shortformer", "use_attn_scale": False,
            "output_logits_soft_cap": cap or -1.0, "dtype": "float64",
        }
    ).eval()  # fmt: skip
    token, slot, place = slice(0, V), slice(V, width), slice(width, width + length)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, token], model.W_pos[:, place], model.W_U[slot] = torch.eye(V), torch.eye(length), torch.eye(V)
        for block in model.blocks:
            block.attn.W_Q[:, place, place] = 10 * torch.eye(length).double()
            block.attn.W_K[:, place, place] = 10 * torch.eye(length).double()
            block.attn.W_V[:, :width, :width] = torch.eye(width).double()
        for head, gain in enumerate(gains):
            model.blocks[0].attn.W_O[head, token, slot] = gain * torch.eye(V).double()
        # What layer 0 wrote reaches the logits by layer 1 alone: it is taken off the stream and put back once.
        model.blocks[1].attn.W_O[0, slot, slot] = torch.eye(V).double()
    return model


def loss_of(logit: float) -> float:
    """Cross-entropy of a token that is not the current one, whose logit is this while those of others are 0."""
    return math.log(math.exp(logit) + V - 1)


def effects(tokens: Tensor = TEXT, **more: Any) -> EdgeEffects:
    return EdgeEffects(tokens, "zero", count=tokens[:, 1:] != tokens[:, :-1], **more)


def test_an_interaction_by_hand() -> None:
    """Direct and by layer 1 the gains a, b count twice: the loss is f(2a + 2b), without edges f(2a + b) and so on."""
    a, b = 1.0, 0.5
    joint = loss_of(a + b) - loss_of(2 * (a + b))
    single = [loss_of(2 * (a + b) - gain) - loss_of(2 * (a + b)) for gain in (a, b)]
    found = Interaction(effects(on="text"), EDGES)(copier((a, b)))
    assert float(found["value"]) == pytest.approx(joint - sum(single)) and float(found["together"]) == pytest.approx(joint)
    np.testing.assert_allclose(found["single"], single)
    assert found["place"].values.tolist() == list(EDGES) and found["edge"].values.tolist() == [0, 1]
    assert float(found["value"]) > 0.05 and found.attrs["measure"] == "interaction_text"


def test_where_the_joint_effect_is_the_sum() -> None:
    """Gains so small that the loss is linear in them: nothing is left beside the single effects."""
    found = Interaction(effects(), EDGES)(copier((1e-4, 2e-4)))
    assert abs(float(found["value"])) < 1e-6 < abs(float(found["together"]))
    assert float(found["single"].sum()) == pytest.approx(float(found["together"]), rel=1e-3)


def test_the_strongest_edges_are_found_on_other_tokens() -> None:
    """The head with the larger gain costs the loss more where it is the current token that comes next."""
    model, repeats = copier((0.2, 0.9)), torch.tensor([[0, 1, 1, 1, 1, 1], [0, 2, 2, 2, 2, 2]])
    among = EdgeEffects(repeats, "zero", where="L0H* -> L1H0.v")
    assert strongest_edges(model, among, 2) == ("L0H1 -> L1H0.v", "L0H0 -> L1H0.v")
    found = Interaction(effects(), strongest=2, among=among)(model)
    assert found["place"].values.tolist() == ["L0H1 -> L1H0.v", "L0H0 -> L1H0.v"]
    assert float(found["value"]) == pytest.approx(float(Interaction(effects(), EDGES)(model)["value"]))
    with pytest.raises(ValueError, match="has 2 edges and the strongest 3"):
        Interaction(effects(), strongest=3, among=among)(model)


def test_the_spec_is_what_numbers_depend_on() -> None:
    among = EdgeEffects(TEXT, where="L0H* -> L1H*.k")
    many = [
        Interaction(effects(), EDGES),
        Interaction(effects(), EDGES[::-1]),
        Interaction(effects(TEXT.flip(0)), EDGES),
        Interaction(effects(), EDGES, controls=3),
        Interaction(effects(), EDGES, seed=1),
        Interaction(effects(), strongest=2, among=among),
        Interaction(effects(), strongest=3, among=among),
    ]
    assert len({str(one.spec()) for one in many}) == len(many)
    assert Interaction(effects(on="a"), EDGES).spec() == many[0].spec() and Interaction(effects(), EDGES).name == "interaction"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"effects": TEXT}, "effects are a Tensor"),
        ({"places": "L0H0"}, "need a list of two or more"),
        ({"places": ()}, "need either places, or among"),
        ({"places": EDGES, "among": EdgeEffects(TEXT)}, "need either places, or among"),
        ({"places": (), "among": TEXT}, "effects are a Tensor"),
        ({"strongest": 1}, "strongest=1"),
        ({"controls": -1}, "controls=-1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        Interaction(**{"effects": effects(), "places": EDGES, **given})
    assert "\n" not in str(caught.value)


def test_closers_are_matched_by_sequence_and_depth() -> None:
    """1 2 are ( ), 3 is a word. First row: ( ( ) ( ) ) ( ) has closers at 3 and 5 of depth 2, 6 (nested) and 8 of depth 1; the
    nested one at 6 is matched by 8. Second row: a nested closer without a flat one of its depth, so none is counted."""
    rows = torch.tensor([[0, 1, 1, 2, 1, 2, 2, 1, 2], [0, 1, 1, 2, 2, 3, 3, 3, 3]])
    nested, flat = matched_closers(match_brackets(rows, [(1, 2)]))
    assert nested.nonzero().tolist() == [[0, 5]] and flat.nonzero().tolist() == [[0, 7]]
    rows = torch.tensor([[0, 1, 2, 1, 1, 2, 2, 1, 2, 1, 1, 2, 2]])
    nested, flat = matched_closers(match_brackets(rows, [(1, 2)]))
    # Nested closers of depth 1 at 6 and 12; flat ones at 2 and 8: the nearest of 6 is 8, and 12 has what is left.
    assert nested.nonzero().tolist() == [[0, 5], [0, 11]] and flat.nonzero().tolist() == [[0, 1], [0, 7]]


def test_runs_without_text_or_layers_have_none() -> None:
    model = copier((1.0, 1.0))
    assert interaction_measures(Checkpoints.from_states({0: model.state_dict()}, model.cfg)) == ()
