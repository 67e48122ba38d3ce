"""The report: whole, offline, honest about what is missing, and the same bytes however often it was interrupted."""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models

from circuits import Checkpoints, report
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.results import labelled
from circuits.views.sections import Section, Wanted, discover

EVIL = "</script><script>alert(1)</script>"
CFG = HookedTransformerConfig(n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=32, d_vocab=60, attn_only=True)


def make_run(path: Path, steps: tuple[int, ...] = (0, 10, 100), cfg: HookedTransformerConfig = CFG) -> Path:
    """A run whose name, corpus and tokens try to be scripts."""
    write_json(path / "config.json", cfg.model_dump(mode="json"))
    write_json(path / "meta.json", {"name": f"evil {EVIL}", "tokens_per_step": 64})
    vocabulary = {word: i for i, word in enumerate(["<bos>", EVIL, *(f"w{i}" for i in range(58))])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>")).save(str(path / "tokenizer.json"))
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(1, 60, (4, 32), generator=rng)
    text[:, 0], text[:, 3] = 0, 1
    save_weights(path / "evaluation.safetensors", {"code": text.to(torch.int32), f"x{EVIL}": text.flip(1).to(torch.int32)})
    for step in steps:
        state = HookedTransformer(cfg.model_copy(update={"seed": step})).state_dict()
        save_weights(step_file(path, step), {name: weight * 3 for name, weight in state.items()}, step=step)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("report")
    return report(Checkpoints.from_dir(run), folder / "out", folder / "store", progress=False)


def test_the_page_is_one_file_that_loads_nothing_and_runs_nothing_foreign(written: Any, elements: Any):
    page = written.html.read_text(encoding="utf-8")
    assert written.html.stat().st_size < 5_000_000
    found = elements(page)
    assert not [tag for tag, _ in found.tags if tag in ("link", "iframe", "object", "embed", "base", "form")]
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:image/", "#")), (tag, name, value[:60])
    (policy,) = (a["content"] for tag, a in found.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    views = [json.loads(text) for text in found.scripts if text.lstrip().startswith("{")]
    assert len(views) == 2 and EVIL in views[1]["labels"]
    assert len(found.scripts) == len(views) + 2  # the bundle, and what starts the views
    assert not any("alert(1)" in script and not script.lstrip().startswith("{") for script in found.scripts)
    assert "evil &lt;/script&gt;" in page


def test_the_results_open_with_xarray_and_have_errors_and_nulls(written: Any):
    with xr.open_dataset(written.results, engine="h5netcdf") as data:
        scores = data["attention_scores_value"]
        assert scores.dims == ("step", "layer", "head", "detector")
        assert data.step.values.tolist() == [0, 10, 100]
        for name in ("stderr", "chance", "null_mean", "null_sd", "z"):
            assert bool(np.isfinite(data[f"attention_scores_{name}"]).all()), name
        assert {"repeat_loss_value", "repeat_loss_stderr", "loss_curves_value", "head_roles_role"} <= set(data.data_vars)
        assert scores.attrs["measure"] == "attention_scores" and json.loads(scores.attrs["config"])["examples"] == 16


def test_every_section_is_there_and_no_folder_of_this_machine(written: Any, run: Path):
    page = written.html.read_text(encoding="utf-8")
    for section in discover():
        assert f'<section id="{section.name}">' in page
    assert str(run.parent) not in page and str(written.html.parent) not in page


def only(*names: str) -> list[Section]:
    return [section for section in discover() if section.name in names]


def test_what_the_weights_say_is_in_the_results_and_on_the_page(written: Any, elements: Any):
    with xr.open_dataset(written.results, engine="h5netcdf") as data:
        pairs = ("step", "mode", "src_layer", "src_head", "dst_layer", "dst_head")
        names = ("value", "q_covariance", "p_kernel", "p_strongest", "state", "standing_out_value")
        for name in (f"composition_{name}" for name in names):
            assert set(data[name].dims) == set(pairs), name
        # Read at the last checkpoint alone, and so with a step axis of their own.
        for name in ("composition_tokens", "embedding_composition", "skip_trigrams"):
            assert data[f"{name}_step"].values.tolist() == [100]
        assert set(data["composition_tokens_z"].dims) == {"composition_tokens_step", *pairs[1:]}
        assert set(data["weight_spectra_z"].dims) == {"step", "layer", "head", "statistic"}
        assert set(data["embedding_composition_z"].dims) == {"embedding_composition_step", "part", "layer", "head"}
        assert set(data["k_term_copying_z"].dims) == set(pairs) - {"mode"}
        assert set(data["skip_trigrams_source"].dims) == {"skip_trigrams_step", "layer", "head", "rank"}
        assert set(data["composition_state"].values.flatten()) <= {"ok", "zero", "missing"}
        assert data["weight_spectra_status"].dims == ("step",), "one per checkpoint, not one per number"
    page = written.html.read_text(encoding="utf-8")
    assert "could not be drawn" not in page
    sampled = page.count("Make it with <code>circuits rllc")  # two texts, their nulls, and all weights
    assert sampled == 5 and page.count("has no data") == 1 + sampled
    assert "edge_attribution_inputs_text has no data" in page  # `circuits paths` makes it
    assert "Which K-composition pairs stand out at step 100" in page
    assert "by tokens: score (z)" in page and "All triples together (20): observed" in page
    assert "rank in its layers" in page and "untestable at 0.01 here" in page, "2 x 2 pairs cannot reach .01 by rank"
    pictures = [a["alt"] or "" for tag, a in elements(page).tags if tag == "img"]
    assert sum(alt.startswith(("Composition of every pair", "Plane of OV copying")) for alt in pictures) == 2


def test_sections_of_the_weights_are_small(written: Any):
    page = written.html.read_text(encoding="utf-8")
    for name in ("composition", "embeddings", "spectra", "skip_trigrams"):
        start = page.index(f'<section id="{name}">')
        assert page.index("</section>", start) - start < 400_000


def test_paths_are_in_the_results_and_on_the_page(written: Any, elements: Any):
    with xr.open_dataset(written.results, engine="h5netcdf") as data:
        assert data["term_importance_value"].dims[-1] == "order" and "edge_effects_repeats_z" in data
        edges = [name for name in data.dims if str(name).endswith("edge")]
        assert edges and all("embed -> logits" in str(data[name].values.tolist()) for name in edges)
    page = written.html.read_text(encoding="utf-8")
    start = page.index('<section id="paths">')
    section = page[start : page.index("</section>", start)]
    assert "Paths by the number of heads in them" in section and "Terms of the path expansion" in section
    assert section.count("<h3>Edges on") == 2 and len(section) < 1_500_000
    pictures = [a["alt"] or "" for tag, a in elements(section).tags if tag == "img"]
    assert sum(alt.startswith("A drawing of") for alt in pictures) == 1


def test_tokens_of_skip_trigrams_are_text(run: Path):
    checkpoints = Checkpoints.from_dir(run)
    cells = ("step", "layer", "head", "rank")
    ids = np.array([1, 1, -1]).reshape(1, 1, 1, 3)
    found = xr.Dataset(
        {name: (cells, ids.astype(float)) for name in ("source", "destination", "out")}
        | {name: (cells, np.where(ids < 0, np.nan, 2.5)) for name in ("value", "qk", "ov")}
        | {"status": ("step", ["ok"])},
        coords={"step": [100], "layer": [0], "head": [0], "rank": [0, 1, 2]},
    )
    roles = xr.Dataset({"role": (cells[:3], [[["<i>"]]])}, coords={"step": [100], "layer": [0], "head": [0]})
    (section,) = only("skip_trigrams")
    made = section.render(checkpoints, {"skip_trigrams": found, "head_roles": roles, "attention_scores": found[["status"]]})
    assert "<script" not in made and "L0H0 (&lt;i&gt;)" in made
    assert made.count("<code>&lt;/script&gt;") == 6, "two triples of three tokens; the missing third is left out"


def test_one_layer_has_no_composition_and_the_page_says_so(tmp_path: Path):
    path = make_run(tmp_path / "mine", (0, 100), CFG.model_copy(update={"n_layers": 1}))
    sections = only("composition", "spectra", "embeddings")
    written = report(Checkpoints.from_dir(path), tmp_path / "out", tmp_path / "store", sections=sections, progress=False)
    page = written.html.read_text(encoding="utf-8")
    assert "This run has one layer." in page and "could not be drawn" not in page
    assert not {"composition", "composition_tokens", "k_term_copying"} & {path.name for path in (tmp_path / "store").iterdir()}
    with xr.open_dataset(written.results, engine="h5netcdf") as data:
        assert "weight_spectra_value" in data and not [name for name in data if "composition_standing" in str(name)]


@pytest.mark.slow
def test_a_run_that_moved_is_read_from_the_store_to_the_same_bytes(written: Any, tmp_path: Path):
    """Nothing is measured again; and a second process, which derives and writes beside the drawing, changes nothing."""
    moved, store = make_run(tmp_path / "elsewhere" / "mine"), written.html.parents[1] / "store"
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*.nc")}
    again = report(Checkpoints.from_dir(moved), tmp_path / "out", store, workers=1, progress=False)
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*.nc")} == before
    assert again.html.read_bytes() == written.html.read_bytes()
    assert again.results.read_bytes() == written.results.read_bytes()


def test_a_broken_checkpoint_is_named_and_the_others_are_shown(tmp_path: Path):
    path = make_run(tmp_path / "mine")
    state = HookedTransformer(CFG).state_dict()
    state["embed.W_E"][0, 0] = torch.nan
    save_weights(step_file(path, 10), state, step=10)
    plain = [section for section in discover() if section.name in ("heads", "provenance")]
    written = report(Checkpoints.from_dir(path), tmp_path / "out", tmp_path / "store", sections=plain, progress=False)
    page = written.html.read_text(encoding="utf-8")
    assert "1 of 3 checkpoints have no data" in page and "holds NaN or infinite weights" in page
    with xr.open_dataset(written.results, engine="h5netcdf") as data:
        assert data["attention_scores_status"].values.tolist() == ["ok", "failed", "ok"]
        assert np.isnan(data["attention_scores_value"].sel(step=10)).all()
        assert np.isfinite(data["attention_scores_value"].sel(step=100)).all()
        assert set(data["head_roles_role"].sel(step=10).values.flatten()) == {"not measured"}
        assert "not measured" not in data["head_roles_role"].sel(step=[0, 100]).values


@dataclass(frozen=True)
class Expensive:
    """Takes long, so the report must not compute it."""

    name: str = field(default="expensive", init=False)
    version: int = field(default=1, init=False)

    def spec(self) -> dict[str, Any]:
        return {}

    def __call__(self, model: Any) -> xr.Dataset:
        return labelled({"value": ((), 1.0)}, {}, measure=self, definition="one", source="here")


def expensive_section() -> Section:
    wanted = [Wanted(Expensive(), cheap=False, command="circuits dear RUN")]
    return Section("dear", "Dear", 50, lambda run: wanted, lambda run, results: f"<b>{float(results['expensive'].value[-1])}")


def test_a_missing_expensive_measure_is_named_with_its_command_and_read_once_it_is_there(run: Path, tmp_path: Path):
    from circuits import sweep

    checkpoints = Checkpoints.from_dir(run)
    options: dict[str, Any] = {"sections": [expensive_section()], "progress": False}
    page = report(checkpoints, tmp_path / "out", tmp_path / "store", **options).html.read_text()
    assert "expensive has no data" in page and "<code>circuits dear RUN</code>" in page
    sweep(Expensive(), checkpoints, store=tmp_path / "store", progress=False)
    page = report(checkpoints, tmp_path / "out", tmp_path / "store", **options).html.read_text()
    assert "has no data" not in page
    assert "&lt;b&gt;1.0" in page, "what a section returns as a plain string is text"


def test_recompute_measures_anew_what_ships_is_stored_or_takes_long(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped, it goes on where it was, and the store is as it was until all is done."""
    from circuits import sweep
    from circuits.dynamics.together import ship
    from circuits.views import report as module

    own = Checkpoints.from_dir(make_run(tmp_path / "mine"))
    options: dict[str, Any] = {"sections": [expensive_section()], "progress": False}
    store = tmp_path / "store"
    sweep(Expensive(), own, store=store, progress=False)
    assert own.path is not None and ship([(Expensive(), own)], store, own.path / "results")
    calls: list[int] = []
    monkeypatch.setattr(Expensive, "__call__", counted(Expensive.__call__, calls))
    report(own, tmp_path / "out", store, **options)
    assert not calls
    before = {file.name: file.stat().st_mtime_ns for file in store.rglob("*.nc")}
    with monkeypatch.context() as stopped:
        stopped.setattr(module, "replace_with", interrupted)
        with pytest.raises(KeyboardInterrupt):
            report(own, tmp_path / "out", store, recompute=True, **options)
    assert len(calls) == len(own) and {f.name: f.stat().st_mtime_ns for f in (store / "expensive").glob("*.nc")} == before
    report(own, tmp_path / "out", store, recompute=True, **options)
    assert len(calls) == len(own) and not (store / "recomputed").exists()
    after = {file.name: file.stat().st_mtime_ns for file in store.rglob("*.nc")}
    assert after.keys() == before.keys() and all(after[name] > before[name] for name in before)


def counted(call: Any, calls: list[int]) -> Any:
    """A measure's call that leaves a mark."""

    def with_mark(self: Any, model: Any) -> Any:
        calls.append(1)
        return call(self, model)

    return with_mark


def interrupted(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_without_coefficients_has_findings_and_the_commands_that_make_more(written: Any):
    """The tiny run has none: its page leads with what is known, and says what is missing and how to make it."""
    page = written.html.read_text(encoding="utf-8")
    lead = page[page.index('<section id="findings">') : page.index('<section id="losses">')]
    assert "circuits rllc" in lead and "What happened when" in lead
    assert [
        name for name in ("stages", "witnesses", "clusters", "scorecard", "each_head") if f'<section id="{name}">' not in page
    ] == []
    clusters = page[page.index('<section id="clusters">') : page.index('<section id="scorecard">')]
    assert "There are no clusters" in clusters and "circuits rllc evil" in clusters
    assert page.count('<details id="head-') == 4 and "could not be drawn" not in page


def test_links_within_the_page_lead_somewhere(written: Any, elements: Any):
    found = elements(written.html.read_text(encoding="utf-8"))
    there = {attributes["id"] for _, attributes in found.tags if attributes.get("id")}
    links = {
        attributes["href"][1:] for tag, attributes in found.tags if tag == "a" and (attributes.get("href") or "").startswith("#")
    }
    assert links <= there and any(link.startswith("measure-") for link in links)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("place", "error", "message"),
    [("out", ValueError, "out is .*, a file; give a folder"), ("store", ValueError, "store is .*, a file; give a folder")],
)
def test_a_file_where_a_folder_belongs_is_refused(run: Path, tmp_path: Path, place: str, error: Any, message: str):
    (tmp_path / "file").write_text("")
    folders = {"out": tmp_path / "a", "store": tmp_path / "b"} | {place: tmp_path / "file"}
    with pytest.raises(error, match=message):
        report(Checkpoints.from_dir(run), **folders, progress=False)
    with pytest.raises(TypeError, match="need Checkpoints"):
        report(run, tmp_path / "a", tmp_path / "b", progress=False)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("artefacts", [1, 3, 7])
def test_a_killed_report_ends_with_the_same_bytes(written: Any, run: Path, tmp_path: Path, artefacts: int):
    """SIGKILL after so many artefacts, then the same command again: the page and the results of an unbroken run."""
    command = [
        sys.executable,
        "-m",
        "circuits",
        "report",
        str(run),
        "--out",
        str(tmp_path / "out"),
        "--store",
        str(tmp_path / "s"),
    ]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("*.nc"))) < artefacts and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert len(list(tmp_path.rglob("*.nc"))) >= artefacts
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert re.fullmatch(r".*report\.html\n.*results\.nc\n", done.stdout)
    assert (tmp_path / "out" / "report.html").read_bytes() == written.html.read_bytes()
    assert (tmp_path / "out" / "results.nc").read_bytes() == written.results.read_bytes()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name not in ("report.html", "results.nc")]
