"""Edges the fast way against one hooked forward pass an edge; sets of edges and paths against their literal twins."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.models.config import HookedTransformerConfig
from circuits.models.effects import effects_by_hooks
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.interventions import Ablation, mean_z, replacement
from circuits.paths.attribution import attributed, products
from circuits.paths.by_hooks import logits_by_hooks
from circuits.paths.edited import edited_stream, of_edges
from circuits.paths.intervention import Intervention, example_bytes
from circuits.paths.places import Place
from circuits.paths.wiring import Edge, Wiring

BASE = {"n_layers": 2, "d_model": 12, "n_heads": 2, "d_head": 4, "n_ctx": 9, "d_vocab": 11, "attn_only": True}
MLP = {"attn_only": False, "act_fn": "gelu", "d_mlp": 20}
SHAPES = {
    "LN, shortformer": {"positional_embedding_type": "shortformer", "n_layers": 3},
    "LN, standard": {},
    "no norm, shortformer": {"positional_embedding_type": "shortformer", "normalization_type": None},
    "RMS, rotary, smeared": {"positional_embedding_type": "rotary", "normalization_type": "RMS", "smeared_keys": True},
    "LNPre, no positions, capped": {
        "positional_embedding_type": "none", "normalization_type": "LNPre",
        "attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0,
    },
    "MLP": MLP,
    "MLP, shortformer": MLP | {"positional_embedding_type": "shortformer"},
    "parallel MLP, solu": MLP | {"parallel_attn_mlp": True, "act_fn": "solu_ln", "n_layers": 3, "d_head": 2},
}  # fmt: skip
WAYS = [
    Ablation(*way) for way in itertools.product(("zero", "mean", "resample"), ("recomputed", "preserved"), ("live", "frozen"))
]
TOKENS = torch.randint(11, (5, 8), generator=torch.Generator().manual_seed(3))


def make(dtype="float64", **more):
    """Random weights everywhere: no zero bias, no unit gain."""
    model = HookedTransformer(HookedTransformerConfig(**BASE | {"dtype": dtype} | more)).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
            weight.copy_(weight * 0.0 + name.endswith(".w") + (0.3 if weight.ndim > 1 else 0.2) * draw)
    return model


def losses(logits, tokens=TOKENS):
    return next_token_loss(logits, tokens, per_token=True).mean(1)


def by_hooks(made, edges, sources="current"):
    """The effect of some edges together, one hooked pass; the alternatives are those of the intervention."""
    batch = whole(made)
    logits = logits_by_hooks(
        made.model, TOKENS, edges, batch.alternative, patterns=made.ablation.patterns, norms=made.ablation.norms,
        positions=batch.positions, sources=sources,
    )  # fmt: skip
    return losses(logits) - losses(made.model(TOKENS))


def whole(made):
    """All examples in one batch."""
    made.each_time, made._kept = len(made), []
    return next(iter(made.batches()))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in ("MLP, shortformer", "parallel MLP, solu")])
def test_an_edge_the_fast_way_is_one_hooked_pass(shape: str):
    """Every edge in one of the ways; other shapes in all ways with the slow tests."""
    fast_is_literal(shape, each=len(WAYS))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_edge_in_every_way_is_one_hooked_pass(shape: str):
    fast_is_literal(shape, each=1)


def fast_is_literal(shape, *, each):
    """Every so many-th edge, another start in each way; positions and the kind of mean take turns."""
    model = make(**SHAPES[shape])
    some = torch.rand(5, 8, generator=torch.Generator().manual_seed(4)) < 0.6
    for number, way in enumerate(WAYS):
        positions = some if number % 2 else None
        over = "positions" if way.kind == "mean" and way.norms == "frozen" else "examples"
        made = Intervention(model, TOKENS, way, positions=positions, over=over)
        fast = made.one_by_one()
        edges = made.wiring.edges
        assert float(fast.abs().max()) > 1e-3
        for edge in edges[number % each :: each]:
            torch.testing.assert_close(fast[edges.index(edge)], by_hooks(made, [edge]), rtol=0, atol=1e-10)


def test_float32_is_within_1e_5():
    model = make("float32", n_layers=3, positional_embedding_type="shortformer")
    exact = make(n_layers=3, positional_embedding_type="shortformer")
    for way in WAYS[::3]:
        fast, literal = (Intervention(one, TOKENS, way).one_by_one().double() for one in (model, exact))
        assert float((fast - literal).abs().max()) <= 1e-5 * max(1.0, float(literal.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_sets_of_edges_use_each_sources_current_value(shape: str):
    model = make(**SHAPES[shape])
    made = Intervention(model, TOKENS, "mean")
    edges = made.wiring.edges
    rng = torch.Generator().manual_seed(5)
    for size in (2, len(edges) // 2, len(edges)):
        chosen = [edges[at] for at in torch.randperm(len(edges), generator=rng)[:size].tolist()]
        torch.testing.assert_close(made.together([chosen])[0], by_hooks(made, chosen), rtol=0, atol=1e-10)
        cached = made.together([chosen], from_clean=True)[0]
        torch.testing.assert_close(cached, by_hooks(made, chosen, "clean"), rtol=0, atol=1e-10)


def test_cached_differences_are_another_object():
    """A head edited on the way writes something else: the clean difference then leaves a remainder at its reader."""
    made = Intervention(make(), TOKENS, "zero")
    behind = [Edge("embed", "L0H0.v"), Edge("L0H0", "L1H1.k")]
    current, cached = made.together([behind])[0], made.together([behind], from_clean=True)[0]
    assert float((current - cached).abs().max()) > 1e-3
    beside = [Edge("embed", "L0H1.v"), Edge("L0H0", "L1H1.k")]  # nothing upstream of L0H0 is edited: the two are one
    torch.testing.assert_close(made.together([beside]), made.together([beside], from_clean=True), rtol=0, atol=1e-12)


def test_all_edges_out_of_a_head_are_the_head():
    model = make(**SHAPES["LN, shortformer"])
    for way in (Ablation("zero"), Ablation("mean", patterns="preserved"), Ablation("mean", norms="frozen")):
        mean = mean_z(model, TOKENS) if way.kind == "mean" else None
        put = replacement(model, TOKENS, way.kind, mean=mean, examples=len(TOKENS))
        _, total, _ = effects_by_hooks(model, TOKENS, put, patterns=way.patterns, norms=way.norms, direct=False)
        made = Intervention(model, TOKENS, way)
        for layer, head in ((0, 1), (1, 0), (2, 1)):
            paths = Place.parse(f"L{layer}H{head}").paths(made.wiring)
            torch.testing.assert_close(made.together([paths])[0], total[layer, head].mean(1), rtol=0, atol=1e-10)


class Tree:
    """Treeified path patching, word for word: every write is computed anew from the writes it reads, down to the embeddings.

    ``edits`` maps a reader's input to what is changed there: a source to replace, or a source with edits of its own.
    """

    def __init__(self, model, alternative):
        self.model, self.wiring = model, Wiring.of(model)
        self.alternative = dict(zip(self.wiring.sources, alternative, strict=True))
        self.pos = model.pos_embed(TOKENS) if model.cfg.positional_embedding_type in ("standard", "shortformer") else None

    def reads(self, name, edits):
        """The stream that an input reads, and positions behind the norm."""
        behind = self.model.cfg.positional_embedding_type == "shortformer"
        stream, placed = 0.0, None
        for source in self.wiring.sources:
            if not self.wiring.has(source, name):
                continue
            written = self.write(source, edits, name)
            if source == "pos" and behind:
                placed = written
            else:
                stream = stream + written
        done = self.model.cfg.n_layers if name == "logits" else int(name[1])
        for block in self.model.blocks[: done + name.endswith("MLP")]:
            stream = stream + block.attn.b_O
        return stream, placed

    def write(self, source, edits, reader):
        """What ``source`` writes as ``reader`` sees it."""
        mine = [path for path in edits if path[-1] == reader and path[-2].split(".")[0] == source]
        if any(len(path) == 2 for path in mine):
            return self.alternative[source]
        inner = [path[:-1] for path in mine]  # what edits the inputs of this instance; other instances do not see it
        everywhere = [path for path in edits if "logits" not in path]
        return self.compute(source, [*inner, *everywhere])

    def compute(self, source, edits):
        model = self.model
        if source == "embed":
            return model.embed(TOKENS)
        if source == "pos":
            return self.pos
        layer = int(source[1])
        block = model.blocks[layer]
        if source.endswith("MLP"):
            return block.mlp(block.ln2(self.reads(source, edits)[0]))
        head = int(source[3:])
        inputs = []
        for channel in "qkv":
            stream, placed = self.reads(f"{source}.{channel}", edits)
            normed = block.ln1(stream)
            inputs.append(normed if placed is None else normed + placed)
        q, k, v = block.attn.read(*inputs)
        return block.attn.gather(q, k, v)[:, :, head] @ block.attn.W_O[head]

    def logits(self, edits):
        stream = self.reads("logits", edits)[0]
        return self.model.unembed(self.model.ln_final(stream))


@pytest.mark.parametrize("shape", ["LN, shortformer", "no norm, shortformer", "MLP"])
@pytest.mark.parametrize(
    "place",
    [
        "L0H1 -> L1H0.k -> logits",
        "embed -> L0H1.v -> L1H0.v -> logits",
        "embed -> L0H0.q -> L1H1.k -> logits, L0H1 -> L1H1.v -> logits",
        "L0H0 -> L1H1.q -> logits, L0H1 -> logits, embed -> L0H0.v -> L1H0 -> logits",
        "embed -> L0H* -> L1H1.k -> logits",
        "embed -> L0H0.v -> L1H0.k -> logits, L0H0 -> L1H0.k -> logits",  # the shorter one replaces the write
        "L0H1 -> L1H0.k, embed -> L0H0.v -> L1H0.k -> logits",  # an edge of the live run, which every instance sees
        "embed -> L0H1.v -> L1H0.k, embed -> L0H1.v, L0H0 -> L1H0.k -> logits",
    ],
)
def test_paths_are_those_of_the_tree(shape: str, place: str):
    model = make(**SHAPES[shape] | {"n_layers": 2})
    made = Intervention(model, TOKENS, "mean")
    paths = Place.parse(place).paths(made.wiring)
    with torch.no_grad():
        tree = Tree(made.model, whole(made).alternative)
        torch.testing.assert_close(tree.logits([]), made.model(TOKENS), rtol=0, atol=1e-10)
        expected = losses(tree.logits(list(paths))) - losses(made.model(TOKENS))
    assert float(expected.abs().max()) > 1e-6
    torch.testing.assert_close(made.together([paths])[0], expected, rtol=0, atol=1e-10)


def test_a_path_is_less_than_its_first_edge():
    """What an edge carries goes on by all ways; a path through the reader's reader is one of them."""
    made = Intervention(make(**SHAPES["LN, shortformer"]), TOKENS, "mean")
    edge, path = made.together([[Edge("L0H1", "L1H0.k")], [("L0H1", "L1H0.k", "L2H1.v", "logits")]])
    assert float((edge - path).abs().max()) > 1e-4


@settings(max_examples=8)
@given(shape=st.sampled_from(sorted(SHAPES)), way=st.sampled_from(WAYS), share=st.floats(0.1, 0.9), seed=st.integers(0, 1000))
def test_attribution_is_the_derivative_by_the_share_of_an_edge(shape, way, share, seed):
    """First order by one edge's share, and where all edges carry a share, the sum over edges by that share."""
    made = Intervention(make(**SHAPES[shape]), TOKENS, way)
    edges = made.wiring.edges
    edge = edges[seed % len(edges)]
    torch.testing.assert_close(attributed(made, [edge])[0], quotient(made, [edge], 0.0), rtol=1e-6, atol=1e-6)
    values = products(made, whole(made), edges, share, {})
    torch.testing.assert_close(values.sum(0), quotient(made, edges, share), rtol=1e-6, atol=1e-6)


def quotient(made, edges, share, step=1e-4):
    """Of the metric by the share that these edges carry."""
    batch = whole(made)
    there, back = (
        batch.reader.of(edited_stream(made.model, batch.clean, batch.alternative, of_edges(edges), share=at)[None])[0]
        for at in (share + step, share - step)
    )
    return (there - back) / (2 * step)


def test_memory_decides_how_many_examples_not_what_comes_out():
    model = make(**SHAPES["MLP, shortformer"])
    plenty = Intervention(model, TOKENS, "mean")
    least = sum(example_bytes(plenty.model, 8, whole_logits=False))
    scarce = Intervention(model, TOKENS, "mean", max_bytes=least)
    assert scarce.each_time == 1 < plenty.each_time
    torch.testing.assert_close(plenty.one_by_one(), scarce.one_by_one(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="allow more"):
        Intervention(model, TOKENS, "mean", max_bytes=least - 1)


def test_patching_goes_both_ways_and_a_metric_sees_the_clean_tokens():
    model = make(**SHAPES["LN, shortformer"])
    other = torch.randint(11, TOKENS.shape, generator=torch.Generator().manual_seed(9))
    into = Intervention(model, TOKENS, "zero", corrupt=other)
    back = Intervention(model, TOKENS, "zero", corrupt=other, direction="denoising")
    with torch.no_grad():
        clean, corrupt = losses(model(TOKENS)), losses(model(other))  # both of predicting the clean tokens
    everything = [edge for edge in into.wiring.edges if edge.source == "embed"]
    torch.testing.assert_close(into.base(), clean, rtol=0, atol=1e-10)
    torch.testing.assert_close(back.base(), corrupt, rtol=0, atol=1e-10)
    torch.testing.assert_close(into.together([everything])[0], corrupt - clean, rtol=0, atol=1e-10)
    torch.testing.assert_close(back.together([everything])[0], clean - corrupt, rtol=0, atol=1e-10)
    seen = []

    def metric(logits, tokens):
        seen.append(tokens)
        return logits[:, -1, 0]

    judged = Intervention(model, TOKENS, "zero", corrupt=other, direction="denoising", metric=metric)
    fast = judged.one_by_one()
    assert all(torch.equal(tokens, TOKENS[: len(tokens)]) or torch.equal(tokens, TOKENS[-len(tokens) :]) for tokens in seen)
    edges = judged.wiring.edges
    for edge in edges[::9]:
        torch.testing.assert_close(fast[edges.index(edge)], judged.together([[edge]])[0], rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_direct_paths_are_those_of_transformer_lens_4(tmp_path):
    """Its own direct path patching, on a random GPT-2-shaped folder: every edge between heads, each input, to 1e-4."""
    import transformer_lens
    from transformers import GPT2Config, GPT2LMHeadModel

    patching = pytest.importorskip("transformer_lens.patching")
    if not hasattr(patching, "get_act_patch_direct_path"):
        pytest.skip(f"transformer-lens {transformer_lens.__version__} has no direct path patching")
    from transformer_lens.model_bridge import TransformerBridge

    shape = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}
    there = GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.5))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in there.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=rng))
    there.save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), load_weights=True)
    bridge.eval()
    clean, corrupt = (torch.randint(1, 40, (3, 12), generator=rng) for _ in range(2))

    def metric(logits, tokens=None):
        """Unbounded and of every position, so that no edge hides."""
        return (logits[:, :, 3] - logits[:, :, 7]).mean(1)

    # Its results are the metric itself, on the corrupt tokens with clean writes put in.
    made = Intervention(bridge, clean, "zero", corrupt=corrupt, direction="denoising", metric=metric)
    caches = [bridge.run_with_cache(tokens)[1] for tokens in (clean, corrupt)]
    largest = 0.0
    for channel, layer, head in itertools.product("qkv", range(2), range(2)):
        expected = patching.get_act_patch_direct_path(
            bridge, corrupt, *caches, lambda logits: metric(logits).mean(), layer, head, channel, verbose=False
        )
        edges = [edge for edge in made.wiring.edges if edge.source == f"L{layer}H{head}" and edge.destination.endswith(channel)]
        ours = made.one_by_one(edges).mean(-1) + made.base().mean()
        theirs = torch.stack([expected[int(edge.destination[1]), int(edge.destination[3])] for edge in edges])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        largest = max(largest, float((ours - made.base().mean()).abs().max()))
    assert largest > 0.05  # what is compared is not nothing
