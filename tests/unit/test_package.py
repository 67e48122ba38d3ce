"""The package as a whole: its public names, what importing it costs, what is installed, and the examples in its docstrings."""

import ast
import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from importlib.resources import files
from types import ModuleType

import pytest

import circuits

IMPORT_BOUND = 0.15


def in_fresh_python(code, cwd):
    """What a new interpreter prints; in a folder that is no checkout, so that the installed package is found."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules():
    """Every module of the installed package but the one that runs the command line."""
    found = [module.name for module in pkgutil.walk_packages(circuits.__path__, "circuits.")]
    assert "circuits.models.hooked" in found
    return [importlib.import_module(name) for name in found if name != "circuits.__main__"]


def test_importing_the_package_loads_no_heavy_library_and_is_quick(tmp_path):
    code = (
        "import time; start = time.perf_counter(); import circuits; took = time.perf_counter() - start\n"
        "import sys, json; heavy = {'torch', 'transformer_lens', 'numpy', 'xarray', 'pydantic'} & set(sys.modules)\n"
        "dir(circuits), circuits.__all__\n"
        "sys.stdout.write(json.dumps([took, sorted(heavy)]))"
    )
    runs = [json.loads(in_fresh_python(code, tmp_path)) for _ in range(3)]
    assert all(heavy == [] for _, heavy in runs)
    assert min(took for took, _ in runs) < IMPORT_BOUND


@pytest.mark.parametrize("module", ["circuits.cli", "circuits.files", "circuits.progress"])
def test_modules_that_must_stay_light_load_no_torch(module, tmp_path):
    loaded = in_fresh_python(f"import {module}, sys; sys.stdout.write(str('torch' in sys.modules))", tmp_path)
    assert loaded == "False"


def test_public_names_are_few_documented_and_listed():
    names = [name for name in circuits.__all__ if name != "__version__"]
    assert 10 < len(names) <= 40
    assert names == sorted(set(names))
    assert set(circuits.__all__) <= set(dir(circuits))
    for name in names:
        thing = getattr(circuits, name)
        assert thing.__doc__, f"{name} has no docstring"
        assert isinstance(thing, ModuleType) or thing.__name__ == name


def test_type_checkers_and_the_running_program_see_the_same_names():
    tree = ast.parse(files("circuits").joinpath("__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    declared = {alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert declared == circuits._HOMES


def test_a_name_that_is_not_public_is_an_attribute_error_that_lists_what_is():
    with pytest.raises(AttributeError, match=r"no attribute 'Transformer'; it offers .*HookedTransformer"):
        _ = circuits.Transformer
    assert not hasattr(circuits, "torch")


def test_the_version_is_that_of_the_installed_distribution(checkout):
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    assert circuits.__version__ == version("circuits-interp") == project["version"]
    assert re.search(rf"^version: {re.escape(project['version'])}$", (checkout / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"[{project['version']}]" in (checkout / "CHANGELOG.md").read_text()


def test_constraints_pin_every_dependency_once_and_nothing_local(checkout):
    lines = [line for line in (checkout / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = dict(line.split("==") for line in lines)
    assert len(pinned) == len(lines)
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert (pinned["torch"], pinned["transformer-lens"]) == ("2.13.0", "4.3.0")
    declared = {re.match(r"[\w.-]+", need)[0].lower().replace("_", "-") for need in requires("circuits-interp")}
    assert declared <= set(pinned)


def test_the_wheel_carries_the_last_checkpoint_of_the_shipped_run_and_no_other(checkout):
    demo = files("circuits") / "demo"
    run = checkout / "fixtures" / "stdlib-2l"
    last = max((run / "checkpoints").glob("step_*.safetensors"))
    assert {entry.name for entry in demo.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    weights = (demo / "model.safetensors").read_bytes()
    assert weights == last.read_bytes()
    assert len(weights) < 2_000_000
    for name in ("config.json", "tokenizer.json"):
        assert (demo / name).read_bytes() == (run / name).read_bytes()


def test_package_data_is_installed():
    package = files("circuits")
    assert (package / "py.typed").is_file()
    assert [entry.name for entry in (package / "views" / "templates").iterdir() if entry.name.endswith(".html")]


def test_examples_in_docstrings_hold():
    finder, runner, report = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False), []
    for module in modules():
        for example in finder.find(module):
            runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries >= 5
