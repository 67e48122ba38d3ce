"""Build hook: carry the final checkpoint of the shipped run into the package as ``circuits/demo``.

The fixture stays the only copy in the repository; a build without it gives a working package without a demo model.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RUN = Path("fixtures/stdlib-2l")
"""The run whose last checkpoint is the demo, relative to the root of the checkout or of the sdist."""

DEMO = "circuits/demo"


def demo_files(root: Path) -> dict[Path, str]:
    """The demo's source files, relative to ``root``, and their names in the package; empty where the run is absent."""
    run = root / RUN
    checkpoints = sorted((run / "checkpoints").glob("step_*.safetensors"), key=lambda path: int(path.stem.removeprefix("step_")))
    if not checkpoints:
        return {}
    chosen = {checkpoints[-1]: "model.safetensors", run / "config.json": "config.json", run / "tokenizer.json": "tokenizer.json"}
    return {source.relative_to(root): name for source, name in chosen.items()}


class DemoModel(BuildHookInterface):
    """In a wheel the files go into the package, in an sdist to their own place, so that a wheel built from it is the same."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        for source, name in demo_files(Path(self.root)).items():
            build_data["force_include"][str(Path(self.root) / source)] = (
                f"{DEMO}/{name}" if self.target_name == "wheel" else source.as_posix()
            )
