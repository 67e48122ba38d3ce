"""How a training run lies on disk: its config and checkpoints, found in any of three layouts.

A run is (a) ``config.json``, ``meta.json`` and ``checkpoints/step_*.safetensors``; (b) weight files beside ``config.json``;
or (c) one folder per checkpoint, each with ``config.json`` and ``model.safetensors``, as Hugging Face revisions are.
The step is the number behind the word "step", else a folder's first number or a file's last.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsIndex

from torch import Tensor

from circuits.files import read_json
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import LENS_BUFFERS
from circuits.models.weights_io import WEIGHT_SUFFIXES, check_weights, read_tensors

Config = HookedTransformerConfig | dict[str, Any]
"""Our config, or a Hugging Face model's ``config.json`` as it is."""

HF_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Causal masks and rotary tables that older Hugging Face files carry; in half precision some are infinite."""


@dataclass(frozen=True)
class Source:
    """Where the weights of one checkpoint are: files, or tensors in memory.

    Attributes:
        folder: of a Hugging Face model, which its own loader reads; None for ours.
        n_bytes: size on disk (or in memory). n_parameters: weights in it.
    """

    label: str
    files: tuple[Path, ...] = ()
    state: Mapping[str, Tensor] | None = None
    folder: Path | None = None
    n_bytes: int = 0
    n_parameters: int = 0

    @property
    def origin(self) -> str:
        """What a sentence about this checkpoint begins with."""
        return str(self.files[0]) if self.files else f"the state dict of step {self.label}"

    def tensors(self) -> dict[str, Tensor]:
        """The stored weights, in their stored dtype."""
        if self.state is not None:
            return dict(self.state)
        found = {name: tensor for file in self.files for name, tensor in read_tensors(file).items()}
        return found if self.folder is None else {n: t for n, t in found.items() if not n.endswith(HF_BUFFERS)}


def file_source(label: str, files: Sequence[Path], config: Config) -> Source:
    """A checkpoint in files, its names and shapes checked against the config; no value is read."""
    cfg = config if isinstance(config, HookedTransformerConfig) else None
    found = Source(label, tuple(files), folder=files[0].parent if cfg is None else None)
    tensors = found.tensors()
    check_weights(tensors, cfg, origin=found.origin)
    n_bytes = sum(file.stat().st_size for file in files)
    return replace(found, n_bytes=n_bytes, n_parameters=sum(tensor.numel() for tensor in tensors.values()))


def state_source(step: SupportsIndex, state: Any, cfg: HookedTransformerConfig) -> Source:
    """A copy of a state dict in memory, its names and shapes checked.

    Raises:
        TypeError: it is not a state dict. ValueError: it is not of this config.
    """
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise TypeError(f"the state of step {step} is a {type(state).__name__}, a state dict is needed: use model.state_dict()")
    kept = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if not name.endswith(LENS_BUFFERS)}
    found = Source(str(step), state=kept)
    check_weights(kept, cfg, origin=found.origin)
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    return replace(found, n_bytes=n_bytes, n_parameters=sum(tensor.numel() for tensor in kept.values()))


def state_sources(states: Mapping[SupportsIndex, Any], cfg: HookedTransformerConfig) -> dict[int, Source]:
    """``{step: state dict}`` as checkpoints.

    Raises:
        TypeError: a step is no integer, or a state no state dict.
        ValueError: there are none, one is not of this config, or two are the same memory.
    """
    if not isinstance(states, Mapping):
        raise TypeError(f"states is a {type(states).__name__}, need a dictionary {{step: model.state_dict()}}")
    if not states:
        raise ValueError("states is empty; give at least one, as {step: model.state_dict()}")
    sources = {operator.index(step): state_source(step, state, cfg) for step, state in states.items()}
    places: dict[tuple[int, ...], SupportsIndex] = {}
    for step, state in states.items():
        twin = places.setdefault(tuple(tensor.data_ptr() for tensor in state.values()), step)
        if twin != step:
            raise ValueError(
                f"the states of steps {twin} and {step} are the same memory, of one model that trained on; "
                "keep copies: {name: weight.clone() for name, weight in model.state_dict().items()}"
            )
    return sources


def parse_step(label: str, *, last: bool) -> int | None:
    """The training step in a file's or folder's name: behind the word "step", else its last or first number."""
    named = re.search(r"step[-_ ]?(\d+)", label, re.IGNORECASE)
    numbers = re.findall(r"\d+", label)
    if named or numbers:
        return int(named[1] if named else numbers[-1 if last else 0])
    return None


def read_config(path: Path) -> Config:
    """A ``config.json``: our fields, or a Hugging Face model's less what differs between equal models.

    Raises:
        ValueError: missing, not JSON, or not the fields of a config.
    """
    fields = read_json(path, what="the config of these weights (circuits.files.write_json(path, cfg.model_dump()) writes one)")
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}, an object of config fields is needed there")
    if "model_type" not in fields:
        return HookedTransformerConfig.parse(fields, origin=str(path))
    volatile = {"transformers_version", "torch_dtype", "dtype"}
    return {name: value for name, value in fields.items() if name not in volatile and not name.startswith("_")}


def find_run(path: Path) -> tuple[Config, dict[int, Source]]:
    """The config and the checkpoints of a run folder in any layout.

    Raises:
        ValueError: there is no such folder, no checkpoint or no config in it, steps repeat, or a weight file is broken.
    """
    if not path.is_dir():
        given = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {given}; give the folder of a run, with config.json and checkpoints/step_*.safetensors")
    inner = path / "checkpoints"
    if inner.is_dir() and (files := weight_files(inner)):
        return _in_files(path, files)
    folders = checkpoint_folders(path)
    files = [file for file in weight_files(path) if parse_step(file.stem, last=True) is not None]
    if files and ((path / "config.json").is_file() or not folders):
        return _in_files(path, files)
    if runs := [folder.name for folder in folders if (folder / "checkpoints").is_dir()]:
        raise ValueError(f"{path} holds whole runs ({', '.join(runs)}), the folder of one is needed: give {path / runs[0]}")
    if folders:
        return in_folders([(folder.name, folder) for folder in folders])
    if model := weight_files(path, whole_model=True):
        raise ValueError(
            f"{path} holds one model ({model[0].name}) of unknown step; name it step_1000.safetensors, by its real step"
        )
    raise ValueError(
        f"{path} holds no checkpoints; a run has config.json and checkpoints/step_*.safetensors, or a folder per checkpoint: "
        "circuits train writes one"
    )


def _in_files(path: Path, files: list[Path]) -> tuple[Config, dict[int, Source]]:
    if path.name == "checkpoints" and (path.parent / "config.json").is_file() and not (path / "config.json").exists():
        raise ValueError(f"{path} is the inside of a run, the folder with config.json is needed: give {path.parent}")
    config = read_config(path / "config.json")
    if not isinstance(config, HookedTransformerConfig):
        raise ValueError(
            f"{path / 'config.json'} describes a Hugging Face model ({config['model_type']}); such a run needs one folder per "
            "checkpoint, each with config.json and model.safetensors"
        )
    steps = unique_steps([(file.stem, file) for file in files], last=True)
    return config, {step: file_source(label, [file], config) for step, (label, file) in steps.items()}


def in_folders(folders: Sequence[tuple[str, Path]]) -> tuple[Config, dict[int, Source]]:
    """The config and checkpoints of (label, folder) pairs, each folder a whole model; all of one config."""
    steps = unique_steps(folders, last=False)
    sources, first = {}, next(iter(steps.values()))[1] / "config.json"
    config = read_config(first)
    for step, (label, folder) in steps.items():
        other = read_config(folder / "config.json")
        if other != config:
            raise ValueError(
                f"{folder / 'config.json'} differs from {first} in {_difference(config, other)}; a run has one config: "
                "keep models of different shape in different folders"
            )
        files = weight_files(folder, whole_model=True)
        if not files:
            raise ValueError(f"{folder} has a config.json but no weights; put its model.safetensors there, or delete the folder")
        sources[step] = file_source(label, files, config)
    return config, sources


def _difference(config: Config, other: Config) -> str:
    a, b = (c if isinstance(c, dict) else c.model_dump() for c in (config, other))
    fields = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    shown = [f"{name} ({b.get(name)!r}, not {a.get(name)!r})" for name in fields[:3]]
    return ", ".join(shown + ["..."] * (len(fields) > 3))


def unique_steps(found: Sequence[tuple[str, Path]], *, last: bool) -> dict[int, tuple[str, Path]]:
    """(label, path) pairs by their step, in order.

    Raises:
        ValueError: a label has no number, or two have the same.
    """
    steps: dict[int, tuple[str, Path]] = {}
    for label, path in found:
        step = parse_step(label, last=last)
        if step is None:
            raise ValueError(f"{path} has no step number in its name ({label!r}), like step_1000; rename it or move it elsewhere")
        if step in steps:
            raise ValueError(f"{path} and {steps[step][1]} are both step {step}, each step is needed once; rename or delete one")
        steps[step] = label, path
    return dict(sorted(steps.items()))


def weight_files(folder: Path, *, whole_model: bool = False) -> list[Path]:
    """The weight files in a folder, hidden and half-written ones left out.

    Args:
        whole_model: only the file, or shards, of one model: ``model*.safetensors`` before anything else.
    """
    found = [f for f in sorted(folder.iterdir()) if f.suffix in WEIGHT_SUFFIXES and f.is_file() and not f.name.startswith(".")]
    if not whole_model:
        return [file for file in found if file.suffix != ".bin"]
    for begin, suffix in (("model", ".safetensors"), ("", ".safetensors"), ("pytorch_model", ".bin"), ("", ".pt"), ("", ".pth")):
        if chosen := [file for file in found if file.suffix == suffix and file.name.startswith(begin)]:
            return chosen
    return []


def checkpoint_folders(path: Path) -> list[Path]:
    """Folders in ``path`` that hold weights or a config; logs and the like are left alone."""
    inside = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    return [folder for folder in inside if (folder / "config.json").is_file() or weight_files(folder, whole_model=True)]


def revision_folder(repo: str, revision: str) -> Path:
    """The folder of one revision: inside the local folder ``repo``, else fetched from the hub into its cache.

    Raises:
        ValueError: there is no such revision, it cannot be fetched, or huggingface-hub is not installed.
    """
    if Path(repo).is_dir():
        folder = Path(repo) / revision
        if not folder.is_dir():
            there = ", ".join(f.name for f in checkpoint_folders(Path(repo))[:8]) or "none"
            raise ValueError(f"{repo} has no folder for the revision {revision!r}; there are: {there}")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo) or repo.startswith("."):
        raise ValueError(f"{repo} is neither a folder nor a hub name (owner/model); give a folder with one folder per revision")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"{repo} is no folder, and the hub needs huggingface-hub: pip install 'circuits-interp[hub]'") from error
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
        if not weight_files(folder, whole_model=True):
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{repo} at {revision!r} was not fetched ({reason}); check name and network, or give a folder"
        ) from error
    return folder
