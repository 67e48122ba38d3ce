"""Attention views and figures: text stays text, nothing is loaded, the picture comes first, equal input gives equal bytes."""

import base64
import gzip
import html
import json
import re

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models

from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.views import curves, weight_figures
from circuits.views.attention import heads_of, view
from circuits.views.figures import drawable, head_colour, label_points, rendered
from circuits.views.formation import formation, last_common, last_measured, roles_at, strongest
from circuits.views.html import (
    bundle,
    decimal,
    evidence,
    packed_bundle,
    probability,
    script_json,
    show_token,
    spread,
    table,
    token_labels,
    with_error,
)
from circuits.views.sections import composition, skip_trigrams
from circuits.views.standing import smallest_q, standing_out

EVIL = "</script><script>alert(1)</script>"
WORDS = ["<bos>", EVIL, " if", "\n        ", "$x$", "中", "&amp;<b>", "·", "\\n", "", *(f" w{i}" for i in range(20))]


@pytest.fixture(scope="module")
def model():
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_heads=3, d_head=8, n_ctx=300, d_vocab=len(WORDS), attn_only=True, seed=3
    )
    return HookedTransformer(cfg).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<bos>"))


@pytest.fixture
def tokens():
    return torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 2])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" if", "·if"), ("\n  ", "⏎··"), ("\n" + " " * 8, "⏎·⟨8⟩"), ("\t", "⇥"), ("\\n", "\\\\n"),
        ("·", "\\xb7"), ("⟨8⟩", "\\u27e88\\u27e9"), ("", "⟨⟩"),
        ("\x00\u202e", "\\x00\\u202e"), ("\ud800", "\\ud800"), ("\u00a0", "\\xa0"), ("é中", "é中"),
    ],
)  # fmt: skip
def test_white_space_and_control_characters_are_visible(text, shown):
    assert show_token(text) == shown


def test_no_two_tokens_read_the_same():
    pieces = [" ", "·", "\\", "n", "\n", "⟨", "⟩", "5", "\t", "\x07", "x", "0", "7"]
    texts = {a + b + c for a in pieces for b in pieces for c in [*pieces, ""]} | {" " * n for n in range(20)} | {"·⟨5⟩", ""}
    assert len({show_token(text) for text in texts}) == len(texts)


def test_a_token_that_is_part_of_a_character_is_shown_by_its_id():
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return "\N{REPLACEMENT CHARACTER}" if ids == [7] else f"<{ids[0]}>"

    assert token_labels(Bytes(), [7, 3]) == ["⟨7⟩", "<3>"]
    assert token_labels(None, [5, 1]) == ["5", "1"]


def test_json_for_scripts_cannot_end_one():
    text = str(script_json({"a": [EVIL, "<!--", "&", "\u2028", 0.5]}))
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == {"a": [EVIL, "<!--", "&", "\u2028", 0.5]}
    with pytest.raises(ValueError, match="JSON"):
        script_json([float("nan")])


def test_numbers_stand_beside_their_errors():
    assert [decimal(0.12349), decimal(-1.5, 1), decimal(-0.0001), decimal(float("nan"))] == ["0.123", "−1.5", "0.000", "–"]
    assert [spread(0.0001), spread(0.0), spread(0.01)] == ["<0.001", "0.000", "0.010"]
    assert with_error(0.5, 0.0123) == "0.500 ± 0.012"
    assert with_error(0.5, float("nan")) == "0.500 (no error)"
    given = {"value": 0.5, "stderr": 0.01, "chance": 0.02, "null_mean": 0.03, "null_sd": 0.004, "z": 117.5}
    assert evidence(given) == "0.500 ± 0.010 (chance 0.020; untrained 0.030, sd 0.004, z = 118)"


def test_a_p_is_never_called_zero_and_says_where_it_could_be_no_smaller():
    given = [(0.5,), (0.01, 0.01), (5e-05, 5e-05), (0.0032,), (float("nan"),), (6e-05, 5e-05), (1.0,)]
    assert [probability(*p) for p in given] == ["0.500", "≤0.010", "≤5e−5", "3e−3", "–", "6e−5", "1.000"]


def test_table_cells_are_text(elements):
    made = table(("<i>", "b"), [(EVIL, 1)], caption="<u>", numeric=(1,), shades=[[0.0, 0.5]])
    assert "<script" not in made and "&lt;i&gt;" in made and "&lt;u&gt;" in made
    assert "background:rgba(0,114,178,0.25)" in made
    assert [tag for tag, _ in elements(made).tags].count("td") == 2


def test_bundle_is_circuitsvis_whole_and_cannot_end_its_script():
    code = str(bundle())
    assert code.count("var CircuitsVis=") == 1
    assert "</script" not in code.lower() and "<!--" not in code and "sourceMappingURL" not in code
    assert gzip.decompress(base64.b64decode(packed_bundle())).decode() == code


def test_heads_by_name_pair_list_and_layer(model):
    assert heads_of("L1H2", model.cfg) == heads_of((1, 2), model.cfg) == heads_of([(1, 2), "1:2"], model.cfg) == [Head(1, 2)]
    assert heads_of(["L0H1", (1, 0)], model.cfg) == [Head(0, 1), Head(1, 0)]
    assert heads_of(1, model.cfg) == [Head(1, 0), Head(1, 1), Head(1, 2)]


def test_patterns_are_the_models_own(model, tokens):
    shown = view(model, tokens, ["L1H2", "L0H0"])
    _, cache = model.run_with_cache(tokens[None])
    for i, (layer, head) in enumerate([(1, 2), (0, 0)]):
        np.testing.assert_allclose(shown.patterns["value"][i], cache["pattern", layer][0, head].detach(), atol=1e-6)
    assert list(shown.patterns["head"].values) == ["L1H2", "L0H0"]
    assert shown.patterns["value"].dims == ("head", "query", "key")
    assert shown.labels == [str(int(t)) for t in tokens]
    np.testing.assert_array_equal(
        view(model, tokens[None], "L0H0").patterns["value"], view(model, tokens, "L0H0").patterns["value"]
    )


def test_value_weighted_patterns(model, tokens):
    _, cache = model.run_with_cache(tokens[None])
    expected = cache["pattern", 1][0, 2] * cache["v", 1][0, :, 2].norm(dim=-1)[None]
    weighted = view(model, tokens, "L1H2", value_weighted=True)
    np.testing.assert_allclose(weighted.patterns["value"][0], expected.detach(), rtol=1e-5)
    renormalised = view(model, tokens, "L1H2", value_weighted="renormalised")
    np.testing.assert_allclose(renormalised.patterns["value"][0], (expected / expected.sum(-1, keepdim=True)).detach(), rtol=1e-5)
    np.testing.assert_allclose(renormalised.patterns["value"].sum("key"), 1.0)
    assert [v.patterns.attrs["measure"] for v in (weighted, renormalised)] == [
        "attention × ‖value‖",
        "attention × ‖value‖, rows renormalised",
    ]
    assert weighted.props()["maxValue"] == pytest.approx(float(expected.max()), rel=1e-2)
    assert renormalised.props()["maxValue"] == 1


def test_props_are_those_of_attention_heads(model, tokens, tokenizer):
    shown = view(model, tokens, 0, tokenizer=tokenizer)
    props = json.loads(str(script_json(shown.props())))
    assert set(props) == {"attention", "tokens", "attentionHeadNames", "maxValue", "minValue", "maskUpperTri"}
    attention = np.array(props["attention"])
    assert attention.shape == (3, 12, 12)
    np.testing.assert_allclose(attention, shown.patterns["value"], atol=5.01e-4)
    assert (np.triu(attention, 1) == 0).all()
    assert props["attentionHeadNames"] == ["L0H0", "L0H1", "L0H2"]
    assert (props["maxValue"], props["minValue"], props["maskUpperTri"]) == (1, -1, True)
    assert props["tokens"][:5] == ["<bos>", "</script…script>", "·if", "⏎·⟨8⟩", "$x$"]
    assert shown.labels[1] == EVIL, "the strip of tokens shows them whole"


def test_a_token_that_is_a_script_is_text_everywhere(model, tokens, tokenizer, tmp_path, elements):
    shown = view(model, tokens, "L0H1", tokenizer=tokenizer)
    page = shown.save(tmp_path / "view.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page
    found = elements(page)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert "alert(1)" in found.scripts[0] and "\\u003c/script\\u003e" in found.scripts[0]
    frame = elements(str(shown.iframe()))
    assert [tag for tag, _ in frame.tags] == ["iframe"]
    assert html.unescape(frame.tags[0][1]["srcdoc"]) == shown.page(static=False) or frame.tags[0][1]["srcdoc"] == shown.page(
        static=False
    )


def test_the_frame_is_sandboxed_of_fixed_height_and_loads_nothing(model, tokens, tokenizer, elements):
    shown = view(model, tokens, "L0H1", tokenizer=tokenizer, height=480)
    ((_, attributes),) = elements(str(shown.iframe())).tags
    assert attributes["sandbox"] == "allow-scripts"
    assert "height:480px" in attributes["style"]
    assert "src" not in attributes
    page = elements(shown.page())
    for tag, attributes in page.tags:
        assert tag != "link"
        for name in ("src", "href", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_several_views_share_nothing(model, tokens, elements):
    first, second = view(model, tokens, "L0H1"), view(model, tokens, "L1H0")
    both = str(first.iframe()) + str(second.iframe())
    assert [tag for tag, _ in elements(both).tags] == ["iframe", "iframe"]
    assert first.page() != second.page()
    assert first.page() == view(model, tokens, "L0H1").page()
    assert first.png() == view(model, tokens, "L0H1").png()


@pytest.mark.parametrize(("renderer", "kinds"), [(None, ["image/png", "text/html"]), ("png", ["image/png"])])
def test_the_picture_is_its_own_output_and_comes_first(model, tokens, monkeypatch, renderer, kinds):
    if renderer:
        monkeypatch.setenv("CIRCUITS_RENDERER", renderer)
    else:
        monkeypatch.delenv("CIRCUITS_RENDERER", raising=False)
    outputs = []

    def publish(*objects):
        outputs.extend(objects)

    monkeypatch.setattr("IPython.display.display", publish)
    shown = view(model, tokens, "L0H1")
    assert outputs == [], "nothing is shown before the notebook asks"
    shown._ipython_display_()
    assert [("image/png" if hasattr(o, "_repr_png_") and o._repr_png_() else "text/html") for o in outputs] == kinds
    assert outputs[0].data == shown.png()
    bundle_of = shown._repr_mimebundle_()
    assert ("text/html" in bundle_of) == (renderer is None) and bundle_of["image/png"][:4] == b"\x89PNG"


def test_a_renderer_nobody_knows_is_refused(model, tokens, monkeypatch):
    monkeypatch.setenv("CIRCUITS_RENDERER", "plotly")
    with pytest.raises(ValueError, match="'plotly'; set it to 'png' or 'html'"):
        view(model, tokens, "L0H1")._repr_mimebundle_()


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_shown_is_refused_in_a_sentence(model, tokens):
    with pytest.raises(ValueError, match=r"257 tokens, view shows at most 256: pass tokens\[:256\]"):
        view(model, torch.zeros(257, dtype=torch.long), "L0H1")
    assert view(model, torch.zeros(256, dtype=torch.long), "L0H1").patterns.sizes["key"] == 256
    with pytest.raises(ValueError, match="hold 2 sequences"):
        view(model, torch.stack([tokens, tokens]), "L0H1")
    with pytest.raises(TypeError, match="float32"):
        view(model, tokens.float(), "L0H1")
    with pytest.raises(TypeError, match="list"):
        view(model, [1, 2, 3], "L0H1")
    with pytest.raises(ValueError, match="there is no head L9H9"):
        view(model, tokens, "L9H9")
    with pytest.raises(ValueError, match="there is no layer 2"):
        view(model, tokens, 2)
    with pytest.raises(ValueError, match="'raw'"):
        view(model, tokens, "L0H1", value_weighted="raw")
    with pytest.raises(ValueError, match="height is 0"):
        view(model, tokens, "L0H1", height=0)
    with pytest.raises(TypeError, match="need a hooked model"):
        view(torch.nn.Linear(2, 2), tokens, "L0H1")


def test_the_alt_text_says_where_heads_attend():
    value = np.zeros((1, 3, 3))
    value[0] = [[1, 0, 0], [0.75, 0.25, 0], [0.25, 0.625, 0.125]]
    from circuits.views.attention import AttentionView

    data = xr.Dataset(
        {"value": (("head", "query", "key"), value)},
        coords={"head": ["L0H0"], "token": ("key", ["a", "b", "c"])},
        attrs={"measure": "attention", "bounded": 1},
    )
    shown = AttentionView(data)
    assert shown.alt == "Heat map of attention. L0H0: most at query 2, key 1 (0.62), mean on the first token 0.50."
    assert repr(shown) == "AttentionView(L0H0: attention on 3 tokens, [query, key])"


def swept(value, stderr=0.01, chance=0.1, steps=(0, 1, 10, 100), status=None):
    """A gathered detector dataset of one layer and one detector: ``value [step, head]``."""
    value = np.asarray(value, dtype=float)[:, None, :, None]
    status = ["ok"] * len(steps) if status is None else status
    dims = ("step", "layer", "head", "detector")
    return xr.Dataset(
        {
            "value": (dims, value),
            "stderr": (dims, np.full(value.shape, stderr)),
            "chance": (("step", "detector"), np.full((len(steps), 1), chance)),
            "null_mean": (dims, np.full(value.shape, chance)),
            "null_sd": (dims, np.full(value.shape, 0.02)),
            "status": ("step", status),
        },
        coords={"step": list(steps), "layer": [0], "head": np.arange(value.shape[2]), "detector": ["induction"]},
    )


def test_formation_is_the_bracket_of_the_lasting_rise():
    # Half of the last excess over chance is .1 + (.9 - .1) / 2 = .5. Head 0 passes it at 10 for good; head 1 falls back
    # and passes again at 100; head 2 was there from the first; head 3 ends within two standard errors of chance.
    scores = swept([[0.1, 0.1, 0.9, 0.1], [0.2, 0.6, 0.8, 0.8], [0.5, 0.2, 0.7, 0.9], [0.9, 0.9, 0.9, 0.11]])
    formed = formation(scores).sel(layer=0, detector="induction")
    np.testing.assert_array_equal(formed["value"], [10, 100, 0, np.nan])
    np.testing.assert_array_equal(formed["before"], [1, 10, np.nan, np.nan])


def test_formation_and_last_step_pass_over_checkpoints_that_failed():
    scores = swept([[0.1], [np.nan], [0.9], [np.nan]], status=["ok", "failed", "ok", "failed"])
    assert last_measured(scores) == 10
    formed = formation(scores)
    assert (formed["value"].item(), formed["before"].item()) == (10, 0)
    assert strongest(scores.sel(step=10), "induction") == Head(0, 0)
    with pytest.raises(ValueError, match="no checkpoint was measured"):
        last_measured(swept([[np.nan]] * 4, status=["failed"] * 4))


def losses():
    """A gathered loss dataset of two corpora at three steps, one of which failed."""
    value = np.array([[[5.0, 5.0], [5.0, 4.9]], [[np.nan] * 2] * 2, [[3.0, 2.5], [4.0, 3.0]]])
    each = value.mean(-1)
    return xr.Dataset(
        {
            "value": (("step", "corpus", "pos"), value), "stderr": (("step", "corpus", "pos"), value * 0 + 0.1),
            "loss": (("step", "corpus"), each), "loss_stderr": (("step", "corpus"), each * 0 + 0.1),
            "in_context_learning_score": (("step", "corpus"), each * 0 - 0.2),
            "in_context_learning_score_stderr": (("step", "corpus"), each * 0 + 0.1),
        },
        coords={"step": [0, 8, 64], "corpus": ["code", EVIL], "pos": [1, 2]},
    )  # fmt: skip


def repeats():
    step = np.array([0.0, 0.1, 2.0])
    names = ("value", "stderr", "drop_exact", "drop_exact_stderr", "drop_shuffled", "drop_shuffled_stderr")
    return xr.Dataset(dict.fromkeys(names, ("step", step)), coords={"step": [0, 8, 64]})


def attention_data(heads=1):
    value = np.tril(np.ones((heads, 6, 6))) / np.arange(1, 7)[:, None]
    return xr.Dataset(
        {"value": (("head", "query", "key"), value)},
        coords={"head": [f"L0H{h}" for h in range(heads)], "token": ("key", ["$x$", EVIL, "中", "·if", "\\n", "⏎"])},
    )


GRID = ("mode", "src_layer", "src_head", "dst_layer", "dst_head")
KNOWN = ("K", Head(0, 1), Head(1, 2))


def composed(layers=2, heads=3, steps=(0, 8, 64)):
    """Gathered composition: K L0H1→L1H2 grows and stands out, Q L0H0→L1H0 beats random orientation alone, the rest is chance."""
    shape = (len(steps), 3, layers, heads, layers, heads)
    z = np.where(np.arange(layers)[:, None, None, None] < np.arange(layers)[:, None], np.zeros(shape), np.nan)
    z += 0.1 * np.arange(heads) - 1.5
    z[:, 1, 0, 1, 1, 2] = 40.0 * np.linspace(0, 1, len(steps))
    z[:, 0, 0, 0, 1, 0] = 12.0
    p = np.where(z >= 12, 1e-4, np.where(np.isnan(z), np.nan, 0.6))
    shared = np.where(z >= 40, 1e-4, np.where(np.isnan(z), np.nan, 0.6))
    dims = ("step", *GRID)
    blank = np.where(np.isnan(z), np.nan, 0.05)
    return xr.Dataset(
        {
            "value": (dims, np.sqrt(0.1 + 0.002 * z)), "z": (dims, z),
            "null_mean": (dims, blank * 2), "null_sd": (dims, blank / 25),
            "p": (dims, p), "q": (dims, p * 10), "p_covariance": (dims, shared), "q_covariance": (dims, shared * 10),
            "p_layer": (dims, np.where(z >= 12, 1 / heads**2, blank * 10)),
            "strongest": (dims, blank * 3), "kernel": (dims, blank * 7), "p_strongest": (dims, p), "p_kernel": (dims, p),
            "z_layer": (dims, z / 10), "chance": ("step", [0.3] * len(steps)),
            "status": ("step", ["ok"] * len(steps)), "reason": ("step", [""] * len(steps)),
        },
        coords={"step": list(steps), "mode": ["Q", "K", "V"], "src_layer": range(layers), "src_head": range(heads),
                "dst_layer": range(layers), "dst_head": range(heads)},
        attrs={"smallest_p": 1e-4, "smallest_p_covariance": 1e-4, "smallest_p_layer": 1 / heads**2},
    )  # fmt: skip


def spectral(layers=2, heads=3, steps=(0, 64)):
    """Gathered spectra: L1H2 copies and L0H1 matches the opposite of itself; the others are random heads."""
    names = ["ov_copying", "ov_top1", "qk_matching"]
    value = np.zeros((len(steps), layers, heads, len(names)))
    value[-1, -1, 2, 0], value[-1, 0, 1, 2] = 0.9, -0.8
    dims = ("step", "layer", "head", "statistic")
    return xr.Dataset(
        {
            "value": (dims, value), "stderr": (dims, value * np.nan),
            "null_mean": (dims, value * 0), "null_sd": (dims, value * 0 + 0.1),
            "z": (dims, value * 10), "p": (dims, np.where(value, 0.01, 0.9)), "status": ("step", ["ok"] * len(steps)),
        },
        coords={"step": list(steps), "layer": range(layers), "head": range(heads), "statistic": names},
    )  # fmt: skip


def matched(layers=2, heads=3):
    """K-terms at one step: L1H2 matches through L0H1."""
    value = np.full((layers, heads, layers, heads), np.nan)
    value[0, :, 1] = 0.0
    value[0, 1, 1, 2] = 0.7
    dims = GRID[1:]
    return xr.Dataset(
        {"value": (dims, value), "null_mean": (dims, value * 0), "null_sd": (dims, value * 0 + 0.08)},
        coords={dim: range(n) for dim, n in zip(dims, value.shape, strict=True)},
    )


FIGURES = {
    "composition": lambda: weight_figures.composition_maps(composed().sel(step=64)),
    "plane": lambda: weight_figures.eigenvalue_plane(spectral().sel(step=64), matched(), {1: Head(0, 1)}, [Head(1, 2)]),
    "pairs": lambda: weight_figures.composition_curves(composed(), [KNOWN]),
    "copying": lambda: weight_figures.statistic_curves(spectral(), "ov_copying", [Head(1, 2)]),
    "loss": lambda: curves.loss_curves(losses()),
    "in_context": lambda: curves.in_context_curves(losses(), scale="linear"),
    "context": lambda: curves.loss_along_context(losses(), 64),
    "repeat": lambda: curves.repeat_loss_curve(repeats()),
    "heads": lambda: curves.head_scores(swept([[0.1, 0.1], [0.2, 0.1], [0.5, 0.1], [0.9, 0.1]]), "induction"),
    "transition": lambda: curves.transition(
        swept([[0.1], [0.5], [0.9]], steps=(0, 8, 64)), repeats(), [("induction", Head(0, 0))]
    ),
    "attention": lambda: curves.attention_maps(attention_data()),
    "attention_grid": lambda: curves.attention_maps(attention_data(heads=2)),
}


@pytest.mark.parametrize(("name", "kind"), [*((name, "svg") for name in FIGURES), ("attention", "png"), ("heads", "png")])
def test_equal_input_gives_equal_bytes_whatever_the_users_style(name, kind):
    import matplotlib

    first = rendered(FIGURES[name](), kind)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert rendered(FIGURES[name](), kind) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert first.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    assert b"Matplotlib" not in first and b"<dc:date>" not in first


def test_curves_are_drawn_where_they_were_measured():
    figure = curves.loss_curves(losses())
    (axis,) = figure.axes
    assert axis.get_xscale() == "symlog"
    for line, expected in zip(axis.lines, ([5.0, np.nan, 2.75], [4.95, np.nan, 3.5]), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [0, 8, 64])
        np.testing.assert_array_equal(line.get_ydata(), expected)
    assert [t.get_text() for t in axis.texts] == ["code", EVIL]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0", "1", "10"]


def test_only_heads_beyond_chance_are_named_and_chance_is_dashed():
    # The last values are .9 and .1, chance is .1: head 1 is not beyond it, however few heads there are.
    axis = curves.head_scores(swept([[0.1, 0.1], [0.2, 0.1], [0.5, 0.1], [0.9, 0.1]]), "induction").axes[0]
    assert [t.get_text() for t in axis.texts] == ["L0H0"]
    dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [0.1]
    assert [line.get_color() for line in axis.lines[:2]] == [head_colour(0, 2), head_colour(1, 2)]


def test_a_figure_shows_itself_in_a_notebook():
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(curves.loss_curves(losses()))
    assert shown["image/png"] == rendered(curves.loss_curves(losses()), "png")


def test_figures_draw_into_the_callers_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    axis = figure.subplots()
    assert curves.loss_curves(losses(), ax=axis) is figure
    assert len(axis.lines) == 2
    own = figure.subplots(1, 2)
    assert (
        curves.transition(swept([[0.1], [0.5], [0.9]], steps=(0, 8, 64)), repeats(), [("induction", Head(0, 0))], axes=list(own))
        is figure
    )


def test_token_labels_in_pictures_are_never_formulas():
    labels = curves.attention_maps(attention_data()).axes[0].get_xticklabels()
    assert [t.get_text() for t in labels][:3] == ["$x$", "</script…script>", "\\u4e2d"]
    assert not any(t.get_parse_math() for t in labels)
    assert drawable("é中") == "é\\u4e2d"


def test_every_head_of_a_layer_has_its_own_colour():
    for n_heads in (2, 8, 16):
        assert len({head_colour(h, n_heads) for h in range(n_heads)}) == n_heads


def test_maps_show_who_writes_and_reads_and_frame_what_both_nulls_say():
    figure = weight_figures.composition_maps(composed().sel(step=64))
    maps = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title(loc="left") for axis in maps] == ["Q: read as queries", "K: read as keys", "V: read as values"]
    assert [t.get_text() for t in maps[0].get_yticklabels()] == ["L0H0", "L0H1", "L0H2"]
    assert [t.get_text() for t in maps[1].get_xticklabels()] == ["L1H0", "L1H1", "L1H2"]
    assert [len(axis.patches) for axis in maps] == [0, 1, 0], "Q L0H0→L1H0 beats random orientation and not the covariance"
    (frame,) = maps[1].patches
    assert frame.get_xy() == (1.5, 0.5) and [t.get_text() for t in maps[1].texts] == ["40"]
    shown = np.ma.filled(maps[1].images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown, composed()["z"].sel(step=64, mode="K", src_layer=0, dst_layer=1))


def test_pairs_that_cannot_be_are_grey():
    figure = weight_figures.composition_maps(composed(layers=4).sel(step=64))
    shown = np.ma.filled(figure.axes[1].images[0].get_array(), np.nan)
    gone = np.isnan(shown).reshape(3, 3, 3, 3).all((1, 3))
    np.testing.assert_array_equal(gone, np.tril(np.ones((3, 3), dtype=bool), -1))
    assert figure.axes[1].images[0].cmap.get_bad().tolist() == pytest.approx([200 / 255] * 3 + [1.0])


@pytest.mark.parametrize(("layers", "heads"), [(2, 12), (6, 12)])
def test_maps_of_small_models_name_every_head(layers, heads):
    axis = weight_figures.composition_maps(composed(layers, heads, steps=(0,)).sel(step=0)).axes[0]
    names = [t.get_text() for t in axis.get_yticklabels()]
    assert names == [str(Head(layer, head)) for layer in range(layers - 1) for head in range(heads)]


def test_maps_of_large_models_are_pooled_to_the_largest_z_of_two_layers():
    figure = weight_figures.composition_maps(composed(layers=4, heads=40).sel(step=64))
    axis = figure.axes[1]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["layer 1", "layer 2", "layer 3"]
    shown = np.ma.filled(axis.images[0].get_array(), np.nan)
    assert shown[0, 0] == 40 and shown[0, 1] == pytest.approx(0.1 * 39 - 1.5) and np.isnan(shown[1, 0])
    assert len(axis.patches) == 1


def test_the_plane_rings_and_names_what_stands_out():
    figure = FIGURES["plane"]()
    above, first = figure.axes
    assert [t.get_text() for t in above.texts] == ["L1H2"] and [t.get_text() for t in first.texts] == ["L0H1"]
    (ring,) = [line for line in above.lines if line.get_markerfacecolor() == "none"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.9, 0.7)
    assert above.get_ylabel() == "K-term statistic, source L0H1" and first.get_ylabel() == "QK matching statistic"
    bands = sorted((patch.get_width(), patch.get_height()) for patch in above.patches)
    assert bands == [pytest.approx((0.4, 1.0)), pytest.approx((1.0, 0.32))], "mean ± 2 sd of each null"


def test_the_plane_of_one_layer_has_one_panel():
    (axis,) = weight_figures.eigenvalue_plane(spectral(layers=1).sel(step=64)).axes
    assert axis.get_title(loc="left") == "Layer 0" and [t.get_text() for t in axis.texts] == ["L0H2", "L0H1"]


def test_composition_over_training_beside_its_null():
    left, right = weight_figures.composition_curves(composed(), [KNOWN]).axes
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0, 20, 40])
    assert [t.get_text() for t in left.texts] == [t.get_text() for t in right.texts] == ["K L0H1→L1H2"]
    np.testing.assert_allclose(left.lines[1].get_ydata(), np.sqrt([0.1] * 3))


def test_names_of_neighbouring_points_do_not_overlap():
    from matplotlib.figure import Figure

    axis = Figure(figsize=(4, 4)).subplots()
    axis.set(xlim=(-1, 1), ylim=(-1, 1))
    points = [(1.0, 0.0, f"L1H{i}", "black") for i in range(3)]
    label_points(axis, points, [(x, y) for x, y, _, _ in points])
    places = [note.xyann for note in axis.texts]
    assert len({(round(x), round(y)) for x, y in places}) == 3
    assert all(x <= 0 for x, _ in places), "inside the axis"


def test_what_stands_out_does_so_under_every_null_that_can_say_so():
    found = composed()
    standing = standing_out(found)
    end = standing["value"].sel(step=64)
    assert float(end.sum()) == 1 and float(weight_figures.of_pair(standing, *KNOWN)["value"].sel(step=64)) == 1
    assert np.isnan(end.sel(src_layer=1)).all() and np.isfinite(end.sel(src_layer=0, dst_layer=1)).all()
    assert standing["testable"].values.tolist() == [[1, 1]] * 3
    # 27 tests and p >= .01: a null that could give no q below .27 has no say, and neither has one without a smallest p.
    coarse = standing_out(found.assign_attrs(smallest_p_covariance=0.01))
    assert coarse["testable"].sel(step=0).values.tolist() == [1, 0]
    assert float(coarse["value"].sel(step=0, mode="Q").sum()) == 1
    silent = standing_out(found.assign_attrs(smallest_p=np.nan, smallest_p_covariance=0.01))
    assert np.isnan(silent["value"].sel(step=0)).all(), "untestable is not the same as nothing found"


def test_a_row_of_the_table_has_channels_beside_their_nulls_and_what_tokens_bring():
    end = composed().sel(step=64)
    roles = {Head(layer, head): "other" for layer in range(2) for head in range(3)}
    row = [str(cell) for cell in composition.pair_row(end, end.assign(value=end["value"] * 0 + 0.625), KNOWN, roles)]
    assert row[7] == "0.150<br><small>p ≤1e−4</small>" and row[8] == "0.350<br><small>p ≤1e−4</small>"
    assert row[9] == "0.625 (40.0)"
    made = composition.strongest_pairs(end, end, [KNOWN], roles, 64)
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", made)
    assert heads[-3:] == ["strongest", "kernel", "by tokens: score (z)"] and len(heads) == len(row)


@pytest.mark.parametrize(("layers", "each"), [(1, 2), (4, 2), (5, 1), (12, 1)])
def test_skip_trigrams_are_shown_of_every_layer(layers, each):
    value = np.random.default_rng(0).uniform(1, 2, (layers, 3, 4))
    value[:, 1] = 3.0
    heads = skip_trigrams.shown_heads(xr.Dataset({"value": (("layer", "head", "rank"), value)}, coords={
        "layer": range(layers), "head": range(3)}))  # fmt: skip
    assert [head.layer for head in heads] == [layer for layer in range(layers) for _ in range(each)]
    assert heads[::each] == [Head(layer, 1) for layer in range(layers)]


def test_triples_together_say_what_the_text_does_and_what_they_raise_unasked():
    # 5 2 → 3 behind 1, 5 2 → 4 without; the crossed 2 → 7 of (1, 2, 3) and (1, 6, 7) is never seen.
    text = torch.tensor([[1, 5, 2, 3, 6, 7]] * 6 + [[0, 5, 2, 4, 6, 7]] * 5 + [[0, 5, 2, 3, 6, 7]])
    triples = xr.Dataset({"source": ("triple", [1, 1]), "destination": ("triple", [2, 6]), "out": ("triple", [3, 7])})
    said = str(skip_trigrams.together(triples, text))
    assert "All triples together (2): observed 12, expected 7.0: lift 0.54 ±" in said and "nats (chance 0)" in said
    assert "2 of 2 crossed triples speak against the text (of the triples themselves a share of 0.00)" in said
    absent = xr.Dataset({name: ("triple", [9]) for name in triples})
    assert "observed 0, expected 0: too few. Crossed triples: too few" in skip_trigrams.together(absent, text)
    never = triples.isel(triple=[0]).assign(out=("triple", [4]))
    assert "observed 0, expected 5.0: lift −∞ nats" in skip_trigrams.together(never, text)


def test_the_smallest_q_is_that_of_the_best_test_at_its_best():
    assert smallest_q(np.array([0.5, np.nan, 0.9, 0.3]), 0.001) == pytest.approx(0.003)
    assert smallest_q(np.array([0.001, 0.001, 0.9]), 0.001) == pytest.approx(0.0015)
    assert np.isnan(smallest_q(np.array([0.5]), float("nan"))) and np.isnan(smallest_q(np.array([np.nan]), 0.01))


def test_the_last_step_that_all_have_and_roles_there():
    scores = swept([[0.1], [0.9], [0.9], [0.9]])
    other = swept([[0.1]] * 4, status=["ok", "ok", "failed", "failed"])
    assert last_common(scores, other) == 1
    with pytest.raises(ValueError, match="no checkpoint has all"):
        last_common(scores, swept([[0.1]] * 4, status=["failed"] * 4))
    roles = xr.Dataset({"role": (("step", "layer", "head"), [[["induction"]]])}, coords={"step": [7], "layer": [0], "head": [0]})
    assert roles_at({"head_roles": roles}, 7) == {Head(0, 0): "induction"}
