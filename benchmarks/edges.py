"""The exact effect of every edge at once against one forward pass an edge: CPU time, largest difference, peak memory.

    python benchmarks/edges.py                                              # all of it, some minutes
    python benchmarks/edges.py --models random-4l --parts loop lens --examples 8
    python benchmarks/edges.py --parts memory auto-circuit

Models: the last checkpoint of the shipped two-layer run, and a random attention-only one of four layers and otherwise the same
sizes. Text: 64 sequences of 128 tokens of the run's held-out code. Metric: the mean next-token loss of an example. Parts:

    exact         all edges at once, Intervention(...).one_by_one(), setting it up included; what the next four stand beside
    loop          our own forward pass with one edge edited, edge by edge, in the same batches
    hooks         a lean loop over edges with hooks (split q, k and v inputs, one hook, no second clean pass) on our class
    lens          the same loop on transformer-lens 3.9's HookedTransformer
    attribution   first order, and integrated over inputs in 5 steps: CPU time, Spearman's correlation with the exact effects
    memory        peak memory of all edges at once in a process of its own, against the bound it was given
    auto-circuit  auto-circuit 1.0.1 on a random model of 2 layers of 4 heads, 16 sequences of 64 tokens: all edges, both ways

"lens" and "auto-circuit" need transformer-lens 3.9, that is an environment of ``constraints-tl3.txt`` (the latter with
``pip install --no-deps auto-circuit==1.0.1``), and are skipped elsewhere.

Writes are replaced by their mean over the 64 sequences. All sides get the same sequences and threads and take turns. Loops are
measured on some edges of every layer and input, weighted by how many there are of each; where fewer sequences are measured, times
are scaled to 64. What loops have in common, the clean run and what replaces writes, is not counted for them. Exit code 1 if
results differ by more than 1e-5 max(1, largest loss), or memory goes beyond its bound.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from scipy.stats import spearmanr
from torch import Tensor

from circuits.models.checkpoints import Checkpoints
from circuits.models.convert import COPIED, to_transformer_lens_state
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.protocol import head_input_name, key_name, query_name, resid_post_name
from circuits.paths.attribution import Integrated, attributed
from circuits.paths.edited import edited_stream, of_edges
from circuits.paths.intervention import MAX_BYTES, Intervention
from circuits.paths.wiring import EMBED, LOGITS, POS, Edge, Wiring, head_of, layer_of

RUN = Path(__file__).parents[1] / "fixtures" / "stdlib-2l"
EXAMPLES, TURNS = 64, 2
MODELS = {"stdlib-2l": (64, 16), "random-4l": (16, 8)}
"""Models, and how many examples are taken of time and of memory."""
WAYS = ("loop", "hooks", "lens")
KINDS: tuple[Integrated, ...] = ("no", "inputs")
PARTS = ("exact", *WAYS, "attribution", "memory", "auto-circuit")
GOALS = {("lens", 2): 10.0, ("lens", 4): 10.0, ("loop", 2): 4.0, ("loop", 4): 2.5}
"""How many times less CPU time all edges at once should take, by depth."""
BOUNDS = (1 << 26, MAX_BYTES)
MIB = 1 << 20


def model_and_tokens(name: str) -> tuple[HookedTransformer, Tensor]:
    run = Checkpoints.from_dir(RUN)
    model = run.at(run.steps[-1])
    if name == "random-4l":  # larger than initial weights, so that edges have effects to differ in
        more = {"n_layers": 4, "initializer_range": 0.12, "seed": 1}
        model = HookedTransformer(model.cfg.model_copy(update=more)).eval()
    return model, run.evaluation["code"][:EXAMPLES].long()


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where something is no number."""
    return float((found - expected).abs().nan_to_num(nan=float("inf")).max())


def groups_of(wiring: Wiring, each: int) -> list[tuple[int, list[Edge]]]:
    """Edges of every layer and input: how many there are, and some of them."""
    groups: dict[str, list[Edge]] = {}
    for edge in wiring.edges:
        into = edge.destination if edge.destination == LOGITS else f"{layer_of(edge.destination)}{edge.destination[-1]}"
        groups.setdefault(into, []).append(edge)
    rng = torch.Generator().manual_seed(0)
    return [(len(one), [one[at] for at in torch.randperm(len(one), generator=rng)[:each].tolist()]) for one in groups.values()]


def original(model: HookedTransformer) -> Any:
    """The same weights in transformer-lens 3.9's class."""
    from transformer_lens import HookedTransformer as LensTransformer
    from transformer_lens import HookedTransformerConfig as LensConfig

    fields = {name: value for name, value in model.cfg.model_dump().items() if name in COPIED - {"act_fn", "d_mlp"}}
    theirs = LensTransformer(LensConfig(**fields, device="cpu")).eval()
    theirs.load_state_dict(to_transformer_lens_state(model))
    return theirs


def has_lens() -> bool:
    """Whether transformer-lens has its HookedTransformer, as it had until 3.9."""
    try:
        from transformer_lens import HookedTransformer as _  # noqa: F401  # asked for, not used
    except ImportError:
        return False
    return True


class Sides:
    """The ways to the effects of edges on some examples."""

    def __init__(self, model: HookedTransformer, tokens: Tensor, corpus: Tensor, hooked: dict[str, Any], batch: int):
        self.tokens, self.hooked, self.batch = tokens, hooked, batch
        self.setup, self.made = cpu(lambda: Intervention(model, tokens, reference=corpus))

    def exact(self) -> Tensor:
        return self.made.one_by_one()

    def prepare(self) -> None:
        """What loops share and do not pay for."""
        self.batches = list(self.made.batches())
        self.change = torch.cat([batch.alternative - batch.written for batch in self.batches], dim=1)
        self.made.base()

    def by(self, way: str, edges: list[Edge]) -> Tensor:
        with torch.no_grad():
            losses = [self.loop(edge) if way == "loop" else self.by_hooks(self.hooked[way], edge) for edge in edges]
        return torch.stack(losses) - self.made.base()

    def loop(self, edge: Edge) -> Tensor:
        """Our own edited run."""
        tree = of_edges([edge])
        found = [b.reader.of(edited_stream(self.made.model, b.clean, b.alternative, tree)[None])[0] for b in self.batches]
        return torch.cat(found)

    def by_hooks(self, model: Any, edge: Edge) -> Tensor:
        """What one writes with hooks; the source lies upstream of the edit, so its write is that of the clean run."""
        change = self.change[self.made.wiring.source_index[edge.source]].split(self.batch)
        found = [
            model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=[arrival(model, edge, part)]).mean(1)
            for tokens, part in zip(self.tokens.split(self.batch), change, strict=True)
        ]
        return torch.cat(found)


def arrival(model: Any, edge: Edge, change: Tensor) -> tuple[str, Callable[[Tensor, Any], Tensor]]:
    """Where an edge arrives, and the hook that edits what is read there."""
    if edge.destination == LOGITS:
        return resid_post_name(model.cfg.n_layers - 1), lambda x, hook: x + change
    layer, head, channel = layer_of(edge.destination), head_of(edge.destination).head, edge.destination[-1]
    name = head_input_name(layer, channel)
    if edge.source == POS and model.cfg.positional_embedding_type == "shortformer":  # behind the norm
        attn = model.blocks[layer].attn
        change = change @ (attn.W_Q if channel == "q" else attn.W_K)[head]
        name = query_name(layer) if channel == "q" else key_name(layer)

    def write(x: Tensor, hook: Any) -> Tensor:
        x[:, :, head] += change  # a copy of this head's own, in both classes
        return x

    return name, write


def hooked_models(model: HookedTransformer, parts: list[str]) -> dict[str, Any]:
    """The models whose hooks are used, with split inputs."""
    found: dict[str, Any] = {}
    if "hooks" in parts:
        found["hooks"] = HookedTransformer(model.cfg.model_copy(update={"use_split_qkv_input": True})).eval()
        found["hooks"].load_state_dict(model.state_dict())
    if "lens" in parts and not has_lens():
        print("  lens skipped: it needs transformer-lens 3.9 (constraints-tl3.txt)")
    elif "lens" in parts:
        found["lens"] = original(model)
        found["lens"].set_use_split_qkv_input(True)
    return found


def measure(name: str, given: argparse.Namespace) -> bool:
    """Exact effects, loops and attribution of one model; whether results differ."""
    model, corpus = model_and_tokens(name)
    wiring, depth = Wiring.of(model), model.cfg.n_layers
    row = {edge: at for at, edge in enumerate(wiring.edges)}
    groups = groups_of(wiring, given.edges)
    some = sum(len(chosen) for _, chosen in groups)
    examples = given.examples or MODELS[name][0]
    print(f"{name}: {len(row):,} edges, {examples} of {EXAMPLES} x {corpus.shape[1]} tokens, {given.threads} threads")
    hooked = hooked_models(model, given.parts)
    ways = [way for way in WAYS if way in hooked or (way == "loop" and way in given.parts)]
    kinds: tuple[Integrated, ...] = KINDS if "attribution" in given.parts else ()
    setup, seconds = 0.0, dict.fromkeys(("exact", *ways, *kinds), 0.0)
    difference, largest = dict.fromkeys(ways, 0.0), 0.0
    effects, estimates = [], {kind: [] for kind in kinds}

    warm = Sides(model, corpus[:8], corpus, hooked, given.batch)
    warm.made.one_by_one(groups[0][1][:1])
    warm.prepare()
    for way in ways:
        warm.by(way, groups[0][1][:1])
    for part in corpus[:examples].chunk(TURNS):
        sides = Sides(model, part, corpus, hooked, given.batch)
        took, found = cpu(sides.exact)
        seconds["exact"] += took
        setup += sides.setup / TURNS
        effects.append(found)
        sides.prepare()
        largest = max(largest, float((found + sides.made.base()).max()))
        for count, chosen in groups:
            for way in ways:
                took, literal = cpu(partial(sides.by, way, chosen))
                seconds[way] += took * count / len(chosen)
                difference[way] = max(difference[way], gap(literal, found[[row[edge] for edge in chosen]]))
        for kind in kinds:
            took, estimate = cpu(partial(attributed, sides.made, wiring.edges, integrated=kind, steps=5))
            seconds[kind] += took
            estimates[kind].append(estimate)

    scaled = {side: took * EXAMPLES / examples for side, took in seconds.items()}
    exact = scaled["exact"] + setup
    value = torch.cat(effects, dim=1).mean(1)
    print(
        f"  exact        {exact:8.1f} CPU s  of which set-up {setup:.1f}; largest mean effect {float(value.abs().max()):.2f} nats"
    )
    for way in ways:
        aim = f", goal {GOALS[way, depth]:g} x" if (way, depth) in GOALS else ""
        print(
            f"  {way:12s} {scaled[way]:8.1f} CPU s  {scaled[way] / exact:5.1f} x the time of exact{aim}; "
            f"on {some} edges, difference {difference[way]:.1e}"
        )
    for kind in kinds:
        agreed = spearmanr(torch.cat(estimates[kind], dim=1).mean(1), value).statistic
        named = "first order" if kind == "no" else kind
        print(f"  {named:12s} {scaled[kind]:8.1f} CPU s  {exact / scaled[kind]:5.1f} x less than exact; Spearman {agreed:.3f}")
    return max(difference.values(), default=0.0) > 1e-5 * max(1.0, largest)


def resident(field: str) -> int:
    """Bytes in memory: ``VmRSS`` now, ``VmHWM`` at most since the mark was reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak(name: str, bound: int) -> bool:
    """All edges under a bound of memory, in a process of its own; whether it took more."""
    model, corpus = model_and_tokens(name)
    Intervention(model, corpus[:2, :8]).one_by_one()  # thread pools and lazy imports are in place
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    part = corpus[: MODELS[name][1]]
    made = Intervention(model, part, reference=corpus, max_bytes=bound)
    setup = resident("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")
    made.one_by_one()
    edges = resident("VmHWM") - before
    over = max(setup, edges) > bound
    print(
        f"  memory       bound {bound / MIB:6.1f} MiB, peak {edges / MIB:6.1f}, of setting up {setup / MIB:6.1f}; "
        f"{len(part)} examples, {made.each_time} at a time{', runs kept' if made.keeps else ''}{'  BEYOND' if over else ''}"
    )
    return over


def memory(name: str, threads: int) -> bool:
    """Peak memory under each bound, in fresh processes; whether one is broken."""
    if not Path("/proc/self/clear_refs").exists():
        print("  memory skipped: it needs /proc of Linux")
        return False
    print(f"{name}: peak memory of all edges above what was there before", flush=True)
    child = [sys.executable, __file__, "--threads", str(threads), "--models", name, "--peak"]
    codes = [subprocess.run([*child, str(bound)], check=False).returncode for bound in BOUNDS]
    return any(codes)


def auto_circuit() -> tuple[Any, Any] | None:
    """auto-circuit's ``patchable_model`` and ``patch_mode``, without the plots and downloads that it imports on the way.

    It asks for a class by the name that this had before transformer-lens 3.
    """
    import transformer_lens

    if not has_lens() or find_spec("auto_circuit") is None:
        return None
    cache = transformer_lens.TransformerLensKeyValueCache
    transformer_lens.HookedTransformerKeyValueCache = cache
    missing = {
        "transformer_lens.past_key_value_caching": {"HookedTransformerKeyValueCache": cache},
        "attr": {"dataclass": dataclasses.dataclass},
        "blobfile": {"BlobFile": None},
    }
    for name, has in missing.items():
        vars(module := ModuleType(name)).update(has)
        sys.modules[name] = module
    sys.modules |= {name: MagicMock() for name in ("plotly", "plotly.io", "plotly.express")}
    from auto_circuit.utils.graph_utils import patch_mode, patchable_model

    return patchable_model, patch_mode


def ours_of(node: Any) -> str:
    """Our name of an auto-circuit node, such as "A1.2.K" or "Resid End"."""
    kind, _, rest = node.name.partition(" ")
    if kind == "Resid":
        return {"Start": EMBED, "End": LOGITS}[rest]
    layer, head, *channel = kind[1:].split(".")
    return ".".join([f"L{layer}H{head}", *map(str.lower, channel)])


def against_auto_circuit() -> bool:
    """All edges of a small model; whether results differ. Its embedding holds positions too, which the mean does not change."""
    found = auto_circuit()
    if found is None:
        print("auto-circuit skipped: it needs transformer-lens 3.9 (constraints-tl3.txt) and auto-circuit 1.0.1")
        return False
    patchable_model, patch_mode = found
    tokens = model_and_tokens("stdlib-2l")[1][:16, :64]
    sizes = {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "n_ctx": 64, "d_vocab": 1024, "attn_only": True}
    model = HookedTransformer(sizes | {"initializer_range": 0.15, "seed": 1}).eval()
    made = Intervention(model, tokens)
    written = torch.cat([batch.alternative for batch in made.batches()], dim=1)
    theirs = original(model)
    theirs.set_use_attn_result(True)
    theirs.set_use_split_qkv_input(True)
    patchable = patchable_model(theirs, factorized=True, separate_qkv=True)
    index = made.wiring.source_index
    sources = map(ours_of, sorted(patchable.srcs, key=lambda node: node.src_idx))
    instead = torch.stack([written[index[name]] + (written[index[POS]] if name == EMBED else 0.0) for name in sources])
    edges = {Edge(ours_of(edge.src), ours_of(edge.dest)): edge for edge in patchable.edges}

    def loop() -> Tensor:
        losses = []
        for edge in edges.values():
            with torch.no_grad(), patch_mode(patchable, instead, edges={edge}):
                losses.append(next_token_loss(patchable(tokens), tokens, per_token=True).mean(1))
        return torch.stack(losses)

    loop()  # warm up
    made.one_by_one()
    theirs_took, slow = cpu(loop)
    ours_took, fast = cpu(lambda: Intervention(model, tokens).one_by_one(list(edges)))
    difference = gap(fast + made.base(), slow)
    print(
        f"auto-circuit: {len(edges)} edges, {theirs_took:.2f} CPU s, exact {ours_took:.2f}, {theirs_took / ours_took:.1f} x; "
        f"largest mean effect {float(fast.mean(1).abs().max()):.2f} nats, difference {difference:.1e}"
    )
    return difference > 1e-5 * max(1.0, float(slow.max()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--examples", type=int, help="of time: how many of the 64 (default: 64 of two layers, 16 of four)")
    parser.add_argument("--edges", type=int, default=2, help="of the loops: how many into each layer and input")
    parser.add_argument("--batch", type=int, default=8, help="of the loops with hooks: examples at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.examples is not None and not TURNS <= given.examples <= EXAMPLES:
        parser.error(f"--examples {given.examples}: need {TURNS} to {EXAMPLES}")
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if given.peak:
        return int(peak(given.models[0], given.peak))
    wrong = False
    for name in given.models:
        if {"exact", "attribution", *WAYS} & set(given.parts):
            wrong |= measure(name, given)
        if "memory" in given.parts:
            wrong |= memory(name, given.threads)
    if "auto-circuit" in given.parts:
        wrong |= against_auto_circuit()
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
