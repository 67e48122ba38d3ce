"""Edges by hooks: numbers from paper, node ablation, and (marker tl3) transformer-lens 3.9's own class and auto-circuit."""

import dataclasses
import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from circuits.models.config import HookedTransformerConfig
from circuits.models.convert import COPIED, to_transformer_lens_state
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import ablated
from circuits.paths.by_hooks import logits_by_hooks
from circuits.paths.wiring import Edge, Wiring

SMALL = {"n_layers": 2, "d_model": 12, "n_heads": 3, "d_head": 4, "n_ctx": 9, "d_vocab": 17, "dtype": "float64"}
ATTN = {"attn_only": True}
MLP = {"act_fn": "gelu_new", "d_mlp": 20}
SHORT = {"positional_embedding_type": "shortformer"}
ROTARY = {"positional_embedding_type": "rotary"}
GRID = {
    "ln": ATTN,
    "shortformer": ATTN | SHORT | {"n_layers": 3},
    "no_norm_shortformer": ATTN | SHORT | {"normalization_type": None},
    "rms_rotary": ATTN | ROTARY | {"normalization_type": "RMS"},
    "mlp": MLP,
    "mlp_shortformer": MLP | SHORT,
    "mlp_rotary_lnpre": MLP | ROTARY | {"normalization_type": "LNPre"},
    "parallel": MLP | {"parallel_attn_mlp": True},
    "solu_ln_capped": MLP | SHORT | {"act_fn": "solu_ln", "output_logits_soft_cap": 3.0},
}
ENDS = [("recomputed", "live"), ("preserved", "frozen")]
WAYS = [(name, *way) for name in GRID for way in ENDS] + [
    (name, *way) for name in ("mlp", "shortformer") for way in (("recomputed", "frozen"), ("preserved", "live"))
]
TOKENS = torch.randint(17, (3, 8), generator=torch.Generator().manual_seed(2))


def make(name, **more):
    """A model without a weight at a value where an error would hide (no zero bias, no unit scale)."""
    model = HookedTransformer(HookedTransformerConfig(**SMALL | GRID.get(name, {}) | more)).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_((weight.ndim == 1) * key.endswith(".w") + 0.4 * torch.randn(weight.shape, generator=rng))
    return model


def written(model):
    """What every source writes on the tokens, ``[source, batch, pos, d_model]``, from a cache."""
    _, cache = model.run_with_cache(TOKENS)
    parts = []
    for name in Wiring.of(model).sources:
        if name in ("embed", "pos"):
            parts.append(cache["hook_embed" if name == "embed" else "hook_pos_embed"])
        elif name.endswith("MLP"):
            parts.append(cache[f"blocks.{name[1]}.hook_mlp_out"])
        else:
            layer, head = int(name[1]), int(name[3])
            parts.append(cache["z", layer][:, :, head] @ model.blocks[layer].attn.W_O[head])
    return torch.stack(parts).detach()


def noise(model, size=0.5):
    """Alternatives that no source would write."""
    shape = (len(Wiring.of(model).sources), *TOKENS.shape, model.cfg.d_model)
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.fixture
def paper():
    """One layer, one head of one dimension, no norm, uniform attention, embeddings (1, 0) and (0, 1).

    Tokens 0, 1: values 1 and 2; z is 1, then (1 + 2) / 2; the head writes 3 z along the first axis; the logit is
    stream . (1, 10). Clean: streams (4, 0) and (4.5, 1), logits 4 and 14.5.
    """
    sizes = {"n_layers": 1, "d_model": 2, "n_heads": 1, "d_head": 1, "n_ctx": 2, "d_vocab": 2, "d_vocab_out": 1}
    kinds = {"attn_only": True, "normalization_type": None, "positional_embedding_type": "none", "dtype": "float64"}
    model = HookedTransformer(sizes | kinds).eval()
    weights = {"embed.W_E": [[1, 0], [0, 1]], "unembed.W_U": [[1], [10]], "unembed.b_U": [0]}
    attention = {"W_Q": [[[0], [0]]], "W_K": [[[0], [0]]], "W_V": [[[1], [2]]], "W_O": [[[3, 0]]]}
    attention |= {name: [[0]] for name in ("b_Q", "b_K", "b_V")} | {"b_O": [0, 0]}
    weights |= {f"blocks.0.attn.{name}": value for name, value in attention.items()}
    model.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in weights.items()})
    return model


def on_paper(model, *edges, **how):
    """Logits with every source's alternative (0, 1)."""
    instead = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(2, 1, 2, 2)
    return logits_by_hooks(model, torch.tensor([[0, 1]]), edges, instead, **how).flatten().tolist()


VALUE, DIRECT, HEAD = Edge("embed", "L0H0.v"), Edge("embed", "logits"), Edge("L0H0", "logits")


def test_by_hand(paper):
    assert on_paper(paper) == [4.0, 14.5]
    assert on_paper(paper, VALUE) == [7.0, 16.0]  # values 2 and 2, z 2 and 2, streams (7, 0) and (6, 1)
    assert on_paper(paper, VALUE, VALUE) == [7.0, 16.0]
    assert on_paper(paper, DIRECT) == [13.0, 14.5]  # streams (3, 1) and (4.5, 1)
    assert on_paper(paper, HEAD) == [11.0, 20.0]  # streams (1, 1) and (0, 2)
    assert on_paper(paper, DIRECT, HEAD) == [20.0, 20.0]  # streams (0, 2)
    # only what the second position reads: from its own value, 2 already, and then from the first's, which was 1
    assert on_paper(paper, VALUE, positions=torch.tensor([[False, True]])) == [4.0, 14.5]
    assert on_paper(paper, VALUE, positions=torch.tensor([[True, False]])) == [7.0, 16.0]
    assert on_paper(paper, DIRECT, HEAD, positions=torch.tensor([[False, True]])) == [4.0, 20.0]


def test_current_and_clean_sources_by_hand(paper):
    """Two edges in a row: the head writes (6, 0) twice in this pass, (3, 0) and (4.5, 0) in the clean one."""
    assert on_paper(paper, VALUE, HEAD) == [11.0, 20.0]
    # streams (1 + 6 - 3, 1) = (4, 1), and (6 - 4.5, 1 + 1) = (1.5, 2)
    assert on_paper(paper, VALUE, HEAD, sources="clean") == [14.0, 21.5]
    assert on_paper(paper, HEAD, sources="clean") == [11.0, 20.0]


def test_queries_and_keys_by_hand(paper):
    """With W_Q = (1, 1) and W_K = (k, 0) the key of token 0 is k and that of token 1 is 0: its share is 3/4 where k = log 3."""
    with torch.no_grad():
        paper.blocks[0].attn.W_Q.fill_(1.0)
        paper.blocks[0].attn.W_K[0, 0, 0] = torch.tensor(3.0, dtype=torch.float64).log()
    assert on_paper(paper) == pytest.approx([4.0, 3 * (0.75 * 1 + 0.25 * 2) + 10])
    assert on_paper(paper, Edge("embed", "L0H0.k")) == pytest.approx([4.0, 14.5])  # all keys 0: uniform again
    assert on_paper(paper, Edge("embed", "L0H0.k"), patterns="preserved") == pytest.approx([4.0, 13.75])
    assert on_paper(paper, Edge("embed", "L0H0.q")) == pytest.approx([4.0, 13.75])  # the query of (0, 1) is 1 as well
    # a query of 0 where it is not: the alternative must reach queries at all
    assert logits_by_hooks(
        paper, torch.tensor([[0, 1]]), [Edge("embed", "L0H0.q")], torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    ).flatten().tolist() == pytest.approx([4.0, 14.5])


@pytest.mark.parametrize(("name", "patterns", "norms"), WAYS)
def test_all_edges_out_of_heads_are_the_ablation_of_the_nodes(name, patterns, norms):
    """Two heads, one of which feeds the other; and what they write themselves changes nothing."""
    model, heads = make(name), [Head(0, 1), Head(1, 2)]
    wiring, how = Wiring.of(model), {"patterns": patterns, "norms": norms}
    edges = [edge for head in heads for edge in wiring.edges_of(str(head))]
    put = torch.randn(model.cfg.n_layers, *TOKENS.shape, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    alternatives = noise(model)
    for head in heads:
        write = model.blocks[head.layer].attn.W_O[head.head]
        alternatives[wiring.source_index[str(head)]] = (put[head.layer, :, :, head.head] @ write).detach()
    with ablated(model, TOKENS, heads, put, patterns=patterns, norms=norms):
        expected = model(TOKENS)
    clean = model(TOKENS).detach()
    found = logits_by_hooks(model, TOKENS, edges, alternatives, **how)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert (found - clean).abs().max() > 1e-2
    # differences to the clean pass leave what the first head did to the second in the stream
    kept = logits_by_hooks(model, TOKENS, edges, alternatives, sources="clean", **how)
    assert (kept - expected).abs().max() > 1e-4
    # one edge too few is seen
    assert (logits_by_hooks(model, TOKENS, edges[:-1], alternatives, **how) - expected).abs().max() > 1e-4
    same = logits_by_hooks(model, TOKENS, wiring.edges, written(model), **how)
    assert torch.allclose(same, clean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", GRID)
def test_all_edges_out_of_other_sources_replace_what_they_write(name):
    """Embeddings, positions (in the stream or behind the norm) and MLPs, each against an edit of its own hook point."""
    model = make(name)
    wiring, alternatives = Wiring.of(model), noise(model)
    points = {"embed": "hook_embed", "pos": "hook_pos_embed"} | {f"L{n}MLP": f"blocks.{n}.hook_mlp_out" for n in range(2)}
    for source in set(points) & set(wiring.sources):
        instead = alternatives[wiring.source_index[source]]
        with torch.no_grad():
            expected = model.run_with_hooks(TOKENS, fwd_hooks=[(points[source], lambda x, hook, put=instead: put)])
        found = logits_by_hooks(model, TOKENS, wiring.edges_of(source), alternatives)
        assert torch.allclose(found, expected, rtol=0, atol=1e-10), source
        assert (found - model(TOKENS)).abs().max() > 1e-2, source


@pytest.mark.parametrize("flags", [{}, {"use_attn_in": True}, {"use_split_qkv_input": True, "use_attn_result": True}])
def test_the_model_is_as_found(flags):
    model = make("mlp_shortformer", **flags).train()
    edges, alternatives = Wiring.of(model).edges, noise(model)
    holders = [model, *model.blocks, *(block.attn for block in model.blocks)]
    before = [holder.cfg for holder in holders]
    logits_by_hooks(model, TOKENS, edges, alternatives, norms="frozen")

    def fail(value, hook):
        raise RuntimeError("on purpose")

    def state():
        hooks = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
        return [holder.cfg is cfg for holder, cfg in zip(holders, before, strict=True)], hooks, model.training

    assert state() == ([True] * len(holders), 0, True)
    model.add_hook("blocks.1.hook_mlp_out", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        logits_by_hooks(model, TOKENS, edges, alternatives)
    model.reset_hooks()
    assert state() == ([True] * len(holders), 0, True)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"edges": [Edge("L1H0", "L0H0.q")]}, ValueError, r"there is no edge L1H0 -> L0H0\.q in this model"),
        ({"edges": ["L0H0 -> logits"]}, TypeError, "is no edge: pass Edge"),
        ({"alternatives": torch.zeros(2, 3, 8, 12)}, ValueError, r"\(2, 3, 8, 12\), need .* = \(8, 3, 8, 12\): one for each"),
        ({"positions": torch.ones(3, 8)}, ValueError, r"positions are torch\.float32 \(3, 8\), need bool \(3, 8\)"),
        ({"positions": torch.ones(8, dtype=torch.bool)}, ValueError, r"need bool \(3, 8\)"),
        ({"patterns": "frozen"}, ValueError, "patterns='frozen': need 'recomputed' or 'preserved'"),
        ({"norms": "x"}, ValueError, "norms='x': need 'live' or 'frozen'"),
        ({"sources": "x"}, ValueError, "sources='x': need 'current' or 'clean'"),
        ({"tokens": TOKENS.float()}, TypeError, "needs integer ids"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "got Linear, need a hooked model"),
    ],
)
def test_refusals(unchecked, change, error, sentence):
    model = make("ln")
    given = {"model": model, "tokens": TOKENS, "edges": Wiring.of(model).edges, "alternatives": noise(model)}
    with pytest.raises(error, match=sentence):
        logits_by_hooks(**given | change)


def original(ours):
    """The same weights in transformer-lens 3.9's own class."""
    from transformer_lens import HookedTransformer as Original
    from transformer_lens import HookedTransformerConfig as OriginalConfig

    fields = {name: value for name, value in ours.cfg.model_dump().items() if name in COPIED}
    if ours.cfg.attn_only:
        del fields["act_fn"], fields["d_mlp"]
    theirs = Original(OriginalConfig(**fields, dtype=torch.float64, device="cpu")).eval()
    theirs.load_state_dict(to_transformer_lens_state(ours))
    return theirs


@pytest.mark.tl3
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("name", "patterns", "norms"), WAYS)
def test_the_original_class_agrees(name, patterns, norms):
    """Random sets of edges and positions, every third edge at a time, on both classes; flags of the other one are as found."""
    ours = make(name)
    theirs, edges, alternatives = original(ours), Wiring.of(ours).edges, noise(ours)
    rng = torch.Generator().manual_seed(5)
    flags = {name: value for name, value in vars(theirs.cfg).items() if name.startswith("use_")}
    clean = ours(TOKENS).detach()
    for sources in ("current", "clean"):
        for positions in (None, torch.rand(TOKENS.shape, generator=rng) < 0.5):
            chosen = [edge for edge in edges if float(torch.rand(1, generator=rng)) < 1 / 3]
            how = {"patterns": patterns, "norms": norms, "positions": positions, "sources": sources}
            found, expected = (logits_by_hooks(model, TOKENS, chosen, alternatives, **how) for model in (ours, theirs))
            assert torch.allclose(found, expected, rtol=0, atol=1e-10)
            assert (found - clean).abs().max() > 1e-2
    assert flags == {name: value for name, value in vars(theirs.cfg).items() if name.startswith("use_")}
    assert not any(point.fwd_hooks for point in theirs.hook_dict.values())
    assert torch.allclose(theirs(TOKENS), clean, rtol=0, atol=1e-10)


@pytest.fixture
def auto_circuit(monkeypatch):
    """auto-circuit 1.0.1's ``patchable_model`` and ``patch_mode``, without the plots and downloads that it imports on the way.

    It asks for a class by the name that this had before transformer-lens 3.
    """
    import transformer_lens

    pytest.importorskip("auto_circuit", reason="pip install --no-deps auto-circuit==1.0.1")
    cache = transformer_lens.TransformerLensKeyValueCache
    monkeypatch.setattr(transformer_lens, "HookedTransformerKeyValueCache", cache, raising=False)
    missing = {
        "transformer_lens.past_key_value_caching": {"HookedTransformerKeyValueCache": cache},
        "attr": {"dataclass": dataclasses.dataclass},
        "blobfile": {"BlobFile": None},
    }
    for name, has in missing.items():
        vars(module := ModuleType(name)).update(has)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("plotly", "plotly.io", "plotly.express"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    from auto_circuit.utils.graph_utils import patch_mode, patchable_model

    return patchable_model, patch_mode


def name_of(node):
    """Our name of an auto-circuit node, such as "A1.2.K" or "Resid End"."""
    kind, _, rest = node.name.partition(" ")
    if kind in ("Resid", "MLP"):
        return {"Start": "embed", "End": "logits"}.get(rest, f"L{rest}MLP")
    layer, head, *channel = kind[1:].split(".")
    return ".".join([f"L{layer}H{head}", *map(str.lower, channel)])


@pytest.mark.tl3
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["ln", "shortformer", "rms_rotary", "mlp", "mlp_rotary_lnpre", "parallel"])
def test_auto_circuit_agrees(auto_circuit, name):
    """The same graph and, for single edges and random sets, the same logits. Its embedding holds standard positions too."""
    patchable_model, patch_mode = auto_circuit
    ours = make(name)
    wiring, alternatives, theirs = Wiring.of(ours), noise(ours), original(ours)
    theirs.set_use_attn_result(True)
    theirs.set_use_split_qkv_input(True)
    if not ours.cfg.attn_only:
        theirs.set_use_hook_mlp_in(True)
    patchable = patchable_model(theirs, factorized=True, separate_qkv=True)
    both = ours.cfg.positional_embedding_type == "standard"
    assert {(name_of(edge.src), name_of(edge.dest)) for edge in patchable.edges} == {
        tuple(edge) for edge in wiring.edges if edge.source != "pos"
    }
    instead = torch.stack(
        [
            alternatives[wiring.source_index[source]] + both * (source == "embed") * alternatives[1]
            for source in map(name_of, sorted(patchable.srcs, key=lambda node: node.src_idx))
        ]
    )
    theirs_of = {(name_of(edge.src), name_of(edge.dest)): edge for edge in patchable.edges}
    rng = torch.Generator().manual_seed(6)
    ends = sorted(theirs_of)
    sets = [[pair] for pair in ends[::9]] + [
        [pair for pair in ends if float(torch.rand(1, generator=rng)) < 1 / 3] for _ in range(4)
    ]
    for chosen in sets:
        with torch.no_grad(), patch_mode(patchable, instead.clone(), edges={theirs_of[pair] for pair in chosen}):
            expected = patchable(TOKENS)
        edges = [Edge(*pair) for pair in chosen]
        edges += [Edge("pos", edge.destination) for edge in edges if both and edge.source == "embed"]
        found = logits_by_hooks(ours, TOKENS, edges, alternatives)
        assert torch.allclose(found, expected, rtol=0, atol=1e-10), chosen
        assert (found - ours(TOKENS)).abs().max() > 1e-4, chosen
