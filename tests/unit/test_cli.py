"""The command line: arguments reach the library, refusals are one sentence, nothing heavy loads before it is needed."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from circuits.cli import app, find_run, processes, read_steps, reports


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory outside any checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shipped(elsewhere):
    """A checkout with a shipped run, as far as finding it goes."""
    run = elsewhere / "fixtures" / "stdlib-2l"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    return run


class Calls(list):
    """Records calls in place of a library function."""

    def __init__(self, result=None, error=None):
        super().__init__()
        self.result, self.error = result, error

    def __call__(self, *args, **kwargs):
        self.append((args, kwargs))
        if self.error is not None:
            raise self.error
        return self.result


def replace(monkeypatch, module, name, stand_in):
    monkeypatch.setattr(importlib.import_module(module), name, stand_in)
    return stand_in


class Opened:
    """Stands in for Checkpoints."""

    def __init__(self, path):
        self.path = path
        self.export = Calls(result="small")


@pytest.fixture
def opened(monkeypatch):
    """``Checkpoints.from_dir`` without a run on disk; gives the list of what was opened."""
    found = []

    def from_dir(path):
        found.append(Opened(path))
        return found[-1]

    checkpoints = importlib.import_module("circuits.models.checkpoints").Checkpoints
    monkeypatch.setattr(checkpoints, "from_dir", from_dir)
    return found


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def assert_refused(result, *words):
    """Exit code 2 and one line on stderr that holds the words."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("circuits: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["report", "--help"], ["train", "--help"]])
def test_help_and_version_load_no_heavy_library(args, tmp_path):
    code = (
        "import sys; from circuits.cli import app\n"
        f"try: app({args!r}, prog_name='circuits')\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert not {'torch', 'transformer_lens', 'numpy', 'xarray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "circuits" in done.stdout


def test_version_is_the_package_version():
    from circuits import __version__

    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"circuits {__version__}\n")


def test_python_m_circuits_is_the_same_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "circuits", "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "circuits")


def test_the_shipped_run_is_found_from_the_checkout_and_from_below(shipped, elsewhere, monkeypatch):
    assert find_run(None) == shipped
    below = elsewhere / "notebooks" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_run(None) == shipped
    assert find_run(elsewhere / "mine") == elsewhere / "mine"


def test_report_without_a_run_elsewhere_asks_for_one(elsewhere):
    assert_refused(invoke("report"), "no run was named", "circuits report RUN")
    assert list(elsewhere.iterdir()) == []


def test_report_writes_below_the_working_directory_and_says_where(shipped, opened, monkeypatch):
    written = SimpleNamespace(html="a/report.html", results="a/results.nc")
    calls = replace(monkeypatch, "circuits.views.report", "report", Calls(result=written))
    result = invoke("report")
    assert result.exit_code == 0, result.stderr
    assert opened[0].path == shipped
    ((run, out, store), options) = calls[0]
    assert run is opened[0]
    assert (str(out), str(store)) == ("reports/stdlib-2l", "reports/stdlib-2l/store")
    assert options == {"workers": processes(None), "recompute": False}
    assert result.stdout == "a/report.html\na/results.nc\n"


def test_report_takes_a_run_and_folders(elsewhere, opened, monkeypatch):
    calls = replace(monkeypatch, "circuits.views.report", "report", Calls(result=SimpleNamespace(html="a", results="b")))
    result = invoke("report", "mine", "--out", "there", "--store", "cache", "--workers", 0, "--recompute")
    assert (result.exit_code, result.stdout) == (0, "a\nb\n"), result.stderr
    assert str(opened[0].path) == "mine"
    assert [str(folder) for folder in calls[0][0][1:]] == ["there", "cache"]
    assert calls[0][1] == {"workers": 0, "recompute": True}


@pytest.mark.parametrize(("cores", "expected"), [(1, 0), (2, 2), (16, 16)])
def test_every_core_measures_unless_told_otherwise(cores, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores), raising=False)
    assert processes(None) == expected
    assert [processes(asked) for asked in (0, 3)] == [0, 3]


def test_a_run_named_by_a_dot_reports_under_its_own_name(elsewhere):
    assert reports(Path()) == Path("reports") / elsewhere.name


def test_train_passes_what_was_given_and_only_that(elsewhere, monkeypatch):
    calls = replace(monkeypatch, "circuits.dynamics.train", "train", Calls(result="run"))
    assert invoke("train", "--preset", "stdlib-1l", "--out", "run").exit_code == 0
    result = invoke(
        *("train", "--preset", "stdlib-1l", "--out", "run", "--data", "file:a.txt", "--steps", 3),
        *("--seed", 7, "--device", "cpu", "--threads", 1),
    )
    assert (result.exit_code, result.stdout) == (0, "run\n")
    (plain, _), (changed, out) = (call[0] for call in calls)
    assert str(out) == "run"
    assert (plain.data, plain.steps, plain.seed, plain.model.n_layers) == ("stdlib", 10_000, 0, 1)
    assert (changed.data, changed.steps, changed.seed, changed.device, changed.threads) == ("file:a.txt", 3, 7, "cpu", 1)
    assert changed.model == plain.model.model_copy(update={"seed": 7})


def test_export_passes_chosen_steps_and_all_by_default(elsewhere, opened):
    assert invoke("export", "run", "small", "--steps", "0,8", "--dtype", "float32").exit_code == 0
    result = invoke("export", "run", "small")
    assert (result.exit_code, result.stdout) == (0, "small\n")
    chosen, everything = (run.export[0] for run in opened)
    assert (str(chosen[0][0]), chosen[1]) == ("small", {"steps": [0, 8], "dtype": "float32"})
    assert everything[1] == {"steps": None, "dtype": "float16"}


def test_steps_are_whole_numbers_with_commas():
    assert read_steps("0, 512,10000") == [0, 512, 10000]
    with pytest.raises(ValueError, match="--steps is '1;2'; give whole numbers with commas"):
        read_steps("1;2")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "--preset", "gpt-5", "--out", "run"], ["no preset 'gpt-5'", "stdlib-2l"]),
        (["train", "--preset", "stdlib-2l", "--out", "run", "--steps", "0"], ["steps is 0", "at least 1"]),
        (["train", "--preset", "stdlib-2l", "--out", "run", "--device", "tpu"], ["device", "'cuda'"]),
        (["train", "--preset", "paper-2l", "--out", "run"], ["training data", "--data"]),
        (["report", "nowhere"], ["nowhere"]),
        (["detect", "nowhere"], ["nowhere"]),
        (["weights", "nowhere"], ["nowhere"]),
        (["paths", "nowhere"], ["nowhere"]),
        (["export", "nowhere", "small"], ["nowhere"]),
        (["export", "nowhere", "small", "--steps", "x"], ["--steps is 'x'"]),
    ],
)
def test_what_the_library_refuses_is_one_sentence_and_leaves_nothing_behind(args, words, elsewhere):
    assert_refused(invoke(*args), *words)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("two\nlines"), TypeError("two lines"), OSError("two lines")])
def test_errors_are_one_line_whatever_they_hold(error, elsewhere, opened, monkeypatch):
    replace(monkeypatch, "circuits.views.report", "report", Calls(error=error))
    assert_refused(invoke("report", "run"), "two lines")


def test_a_defect_is_not_dressed_up_as_a_refusal(elsewhere, opened, monkeypatch):
    replace(monkeypatch, "circuits.views.report", "report", Calls(error=ZeroDivisionError("ours")))
    assert isinstance(invoke("report", "run").exception, ZeroDivisionError)


def test_ctrl_c_says_how_to_go_on(elsewhere, monkeypatch):
    replace(monkeypatch, "circuits.dynamics.train", "train", Calls(error=KeyboardInterrupt()))
    result = invoke("train", "--preset", "stdlib-2l", "--out", "run")
    assert result.exit_code == 130
    assert result.stderr == "circuits: stopped; the same command again goes on from what is saved\n"


def test_train_detect_and_export_on_a_tiny_real_run(elsewhere):
    import xarray as xr

    (elsewhere / "text.txt").write_text("\n\n".join(" ".join(f"{(40 * i + j) ** 3:x}" for j in range(200)) for i in range(40)))
    trained = invoke("train", "--preset", "stdlib-1l", "--data", "file:text.txt", "--steps", 2, "--threads", 1, "--out", "run")
    assert (trained.exit_code, trained.stdout) == (0, "run\n"), trained.stderr
    assert sorted(path.name for path in (elsewhere / "run" / "checkpoints").iterdir()) == [
        f"step_{step:09d}.safetensors" for step in (0, 1, 2)
    ]
    detected = invoke("detect", "run", "--out", "heads.nc", "--workers", 0)
    assert (detected.exit_code, detected.stdout) == (0, "heads.nc\n"), detected.stderr
    with xr.open_dataset("heads.nc", engine="h5netcdf") as data:
        assert data["value"].dims == ("step", "layer", "head", "detector")
        assert data.step.values.tolist() == [0, 1, 2]
    exported = invoke("export", "run", "small", "--steps", "0,2")
    assert (exported.exit_code, exported.stdout) == (0, "small\n"), exported.stderr
    sizes = {run: (elsewhere / run / "checkpoints" / "step_000000002.safetensors").stat().st_size for run in ("run", "small")}
    assert 0.49 < sizes["small"] / sizes["run"] < 0.52


@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_of_a_tiny_real_run(layers, elsewhere, tiny):
    """Every measure of the weights in one file; one layer leaves out what needs two."""
    import xarray as xr

    from circuits.files import write_json
    from circuits.models.checkpoints import save_weights, step_file
    from circuits.models.hooked import HookedTransformer

    cfg = tiny.cfg.model_copy(update={"n_layers": layers})
    write_json(elsewhere / "run" / "config.json", cfg.model_dump(mode="json"))
    for step in (0, 10):
        state = HookedTransformer(cfg.model_copy(update={"seed": step})).state_dict()
        save_weights(step_file(elsewhere / "run", step), state, step=step)
    result = invoke("weights", "run", "--store", "store", "--workers", 0)
    assert (result.exit_code, result.stdout) == (0, "reports/run/weights.nc\n"), result.stderr
    assert result.stderr == ""
    names = ["embedding_composition", "skip_trigrams", "weight_spectra"]
    names += ["composition", "composition_tokens", "k_term_copying"] * (layers - 1)
    with xr.open_dataset("reports/run/weights.nc", engine="h5netcdf") as data:
        assert json.loads(data.attrs["measures"]) == sorted(names) and json.loads(data.attrs["absent"]) == {}
        assert {f"{name}_value" for name in names} <= set(data.data_vars)
        assert all(data[f"{name}_status"].values.tolist() == ["ok", "ok"] for name in names)
    assert sorted(path.name for path in (elsewhere / "store").iterdir()) == sorted(names)


def test_paths_of_a_tiny_real_run(elsewhere, tiny):
    """Edges and terms in one file; a run without text has repeated tokens alone, and says what it lacks nothing of."""
    import torch
    import xarray as xr
    from safetensors.torch import save_file

    tiny.run(elsewhere / "run", steps=(0, 10))
    text = torch.randint(1, 11, (6, 8), generator=torch.Generator().manual_seed(0))
    save_file({"code": text.to(torch.int32)}, elsewhere / "run" / "evaluation.safetensors")
    result = invoke("paths", "run", "--store", "store", "--workers", 0)
    assert (result.exit_code, result.stdout) == (0, "reports/run/paths.nc\n"), result.stderr
    assert result.stderr == ""
    names = ["edge_attribution_inputs_text", "edge_effects_repeats", "edge_effects_text", "path_terms", "term_importance"]
    with xr.open_dataset("reports/run/paths.nc", engine="h5netcdf") as data:
        assert json.loads(data.attrs["measures"]) == names and json.loads(data.attrs["absent"]) == {}
        assert all(data[f"{name}_status"].values.tolist() == ["ok", "ok"] for name in names)
        assert "embed -> logits" in data["edge"].values.tolist()
    assert sorted(path.name for path in (elsewhere / "store").iterdir()) == names
    tiny.run(elsewhere / "bare", steps=(0,))
    assert invoke("paths", "bare", "--workers", 0).exit_code == 0
    with xr.open_dataset("reports/bare/paths.nc", engine="h5netcdf") as data:
        assert json.loads(data.attrs["measures"]) == ["edge_effects_repeats"]


def test_weights_passes_what_was_asked_and_says_what_is_absent(elsewhere, opened, monkeypatch):
    import xarray as xr

    from circuits.dynamics.weigh import Weighed

    data = xr.Dataset({"value": ("step", [1.0])}, coords={"step": [0]})
    calls = replace(
        monkeypatch, "circuits.dynamics.weigh", "weigh", Calls(Weighed("run", {"one": data}, {"two": "it has\nno tokens"}))
    )
    result = invoke("weights", "run", "--out", "here.nc", "--workers", 3)
    assert (result.exit_code, result.stdout) == (0, "here.nc\n")
    assert result.stderr == "circuits: two has no data: it has no tokens\n"
    assert [str(value) for value in calls[0][1].values()] == ["reports/run/store", "3"]
    with xr.open_dataset("here.nc", engine="h5netcdf") as found:
        assert json.loads(found.attrs["absent"]) == {"two": "it has\nno tokens"} and "one_value" in found


def test_weights_that_nothing_can_be_measured_of_are_refused(elsewhere, tiny):
    import torch

    tiny.run(elsewhere / "run", steps=(0,), changes={"embed.W_E": torch.full((11, 8), torch.nan)})
    assert_refused(invoke("weights", "run", "--workers", 0), "NaN or infinite weights")
    assert not (elsewhere / "reports" / "run" / "weights.nc").exists()


def test_detect_measures_attention_unless_told_otherwise(elsewhere, opened, monkeypatch):
    import xarray as xr

    data = xr.Dataset({"value": ("step", [1.0])}, coords={"step": [0]})
    score = replace(monkeypatch, "circuits.dynamics.detect", "detect", Calls(data))
    everything = replace(monkeypatch, "circuits.dynamics.functions", "functions", Calls(error=AssertionError()))
    for args in ((), ("--what", "attention")):
        result = invoke("detect", "run", "--workers", 0, *args)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "reports/run/detect.nc\n", "")
    assert len(score) == 2 and not everything
    assert [str(value) for value in score[0][1].values()] == ["reports/run/store", "0"]
    with xr.open_dataset("reports/run/detect.nc", engine="h5netcdf") as found:
        assert list(found.data_vars) == ["value"], "the file it has always written"


def test_detect_measures_what_is_asked_and_names_what_is_absent(elsewhere, opened, monkeypatch):
    import xarray as xr

    from circuits.dynamics.functions import WHAT, Functions

    data = xr.Dataset({"value": ("step", [1.0])}, coords={"step": [0]})
    found = Functions("run", {"one": data}, {"two": "it has\nno tokens"})
    calls = replace(monkeypatch, "circuits.dynamics.functions", "functions", Calls(found))
    replace(monkeypatch, "circuits.views.function_wanted", "not_measured", Calls({"three": "it needs a text"}))
    result = invoke("detect", "run", "--what", "effects, roles,effects", "--out", "here.nc", "--store", "cache", "--workers", 3)
    assert (result.exit_code, result.stdout) == (0, "here.nc\n")
    said = ["two has no data: it has no tokens", "three has no data: it needs a text"]
    assert result.stderr == "".join(f"circuits: {line}\n" for line in said)
    assert invoke("detect", "run", "--what", "all").exit_code == 0
    assert invoke("detect", "run", "--what", "attention,brackets").exit_code == 0
    assert [call[0][1] for call in calls] == [["effects", "roles"], list(WHAT), ["attention", "brackets"]]
    assert [str(value) for value in calls[0][1].values()] == ["cache", "3"]
    with xr.open_dataset("here.nc", engine="h5netcdf") as data:
        assert json.loads(data.attrs["absent"]) == {"two": "it has\nno tokens"} and "one_value" in data


def test_detect_refuses_what_it_does_not_know_before_any_work(elsewhere, opened):
    choices = "attention, behaviour, effects, multigrams, brackets, roles, several with commas, or all"
    assert_refused(invoke("detect", "run", "--what", "effects,rolls"), "--what has 'rolls'", choices)
    assert not opened and list(elsewhere.iterdir()) == []


def test_detect_refuses_a_run_that_has_nothing_to_measure_on(elsewhere, tiny):
    tiny.run(elsewhere / "run", steps=(0,))
    assert_refused(invoke("detect", "run", "--what", "effects", "--workers", 0), "neither text nor tokenizer")
    assert not (elsewhere / "reports").exists()


def test_scorecard_checks_runs_as_seeds_and_shows_verdicts(elsewhere, monkeypatch):
    claim = SimpleNamespace(name="C8", verdict="holds", statement="Heads compose.")
    checked = replace(monkeypatch, "circuits.crosscheck.crosscheck", "check_run", Calls(result=SimpleNamespace(claims=(claim,))))
    written = replace(monkeypatch, "circuits.crosscheck.crosscheck", "write_scorecard", Calls(result=["a.csv", "a.md"]))
    result = invoke("scorecard", "mine", "seed-2.npz.xz", "--one-layer", "single", "--workers", 0)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == ["C8", "holds", "Heads", "compose.", "a.csv", "a.md"]
    ((first, others), options) = checked[0]
    assert (str(first), [str(other) for other in others]) == ("mine", ["seed-2.npz.xz"])
    assert options["parts"] == ["scorecard"] and str(options["one_layer"]) == "single"
    assert str(options["store"]) == "reports/mine/store" and str(written[0][0][1]) == "reports/mine"


def test_crosscheck_says_what_is_missing(elsewhere, monkeypatch):
    found = SimpleNamespace(absent={"lags": "no coefficients\n  at all"})
    checked = replace(monkeypatch, "circuits.crosscheck.crosscheck", "check_run", Calls(result=found))
    replace(monkeypatch, "circuits.crosscheck.crosscheck", "write_crosscheck", Calls(result=["crosscheck.nc"]))
    result = invoke("crosscheck", "mine", "--other", "a", "--other", "b", "--workers", 0)
    assert (result.exit_code, result.stdout) == (0, "crosscheck.nc\n"), result.stderr
    assert result.stderr == "circuits: lags has no data: no coefficients at all\n"
    assert [str(path) for path in checked[0][0][1]] == ["a", "b"]


def test_evidence_goes_into_a_file_and_not_into_a_folder(elsewhere, opened, monkeypatch):
    found = SimpleNamespace(absent={}, save=Calls(result="evidence.npz.xz"))
    calls = replace(monkeypatch, "circuits.crosscheck.evidence", "evidence_of", Calls(result=found))
    result = invoke("evidence", "mine", "--workers", 0)
    assert (result.exit_code, result.stdout) == (0, "evidence.npz.xz\n"), result.stderr
    assert str(found.save[0][0][0]) == "reports/mine/evidence.npz.xz" and len(calls) == 1
    (elsewhere / "folder").mkdir()
    assert_refused(invoke("evidence", "mine", "--out", elsewhere / "folder"), "is a folder", "evidence.npz.xz")
    assert len(calls) == 1
