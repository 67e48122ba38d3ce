"""A run written in our own layout, thinned and rounded: how the shipped fixtures are made."""

import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from circuits.files import write_json, write_whole
from circuits.models.checkpoints import Checkpoints
from circuits.models.layouts import weight_files
from circuits.models.weights_io import save_weights, step_file

EXPORT_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def export_run(run: Checkpoints, out: Path, *, dtype: str) -> Path:
    """Write every checkpoint of ``run`` and what lies beside them into ``out``; see ``Checkpoints.export``.

    Raises:
        ValueError: an unknown dtype, a weight that does not fit it, or a folder that holds something else.
    """
    if dtype not in EXPORT_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; export writes {', '.join(EXPORT_DTYPES)}")
    kind = EXPORT_DTYPES[dtype]
    itself = run.path is not None and out.is_dir() and out.samefile(run.path)
    if itself or out.is_file():
        raise ValueError(f"{out} is {'the run itself' if itself else 'a file'}; export needs another, empty folder")
    written = {step: step_file(out, step) for step in run.steps}
    there = weight_files(out / "checkpoints") if (out / "checkpoints").is_dir() else []
    if stale := [file for file in there if file not in written.values()]:
        raise ValueError(f"{stale[0]} is of an export with other steps; delete {out / 'checkpoints'} or give an empty folder")
    for step in run.steps:  # all of them before anything is written
        _rounded(run, step, kind)
    files = [write_json(out / "config.json", run.cfg.model_dump(mode="json"))]
    files += [save_weights(path, _rounded(run, step, kind), step=step) for step, path in written.items()]
    if evaluation := dict(run.evaluation):
        if run.token_counts is not None:
            evaluation["token_counts"] = torch.from_numpy(run.token_counts)
        tokens = {name: _compact(name, ids) for name, ids in evaluation.items()}
        files.append(save_weights(out / "evaluation.safetensors", tokens))
    if corpus := run.corpus:
        streams = {name: _compact(name, torch.from_numpy(ids)) for name, ids in corpus.items()}
        files.append(save_weights(out / "corpus.safetensors", streams))
    for name in ("tokenizer.json", "losses.csv", "train.json"):
        if (found := run.beside(name)) is not None:
            files.append(_copy(found, out / name))
    hashes = {file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    about = {key: value for key, value in run.meta.items() if key != "corpus_of"}  # its text is written with it
    write_json(out / "meta.json", {"name": run.name} | about | {"steps": list(run.steps), "dtype": dtype, "sha256": hashes})
    return out


def _rounded(run: Checkpoints, step: int, kind: torch.dtype) -> dict[str, Tensor]:
    """The weights of a step in another dtype; refused where a value lies outside its range."""
    state, largest = run.at(step).state_dict(), torch.finfo(kind).max
    for name, weight in state.items():
        if (extreme := float(weight.abs().max())) > largest:
            raise ValueError(f"step {step}: {name} reaches {extreme:g}, {kind} ends at {largest:g}; export with dtype='float32'")
    return {name: weight.to(kind) for name, weight in state.items()}


def _compact(name: str, ids: Tensor) -> Tensor:
    """Token ids as uint16 where they fit, counts as int32 where they do."""
    low, high = int(ids.min()), int(ids.max())
    if name != "token_counts" and low >= 0 and high < 2**16:
        return ids.to(torch.uint16)
    return ids.to(torch.int32) if low >= -(2**31) and high < 2**31 else ids


def _copy(source: Path, to: Path) -> Path:
    def write(aside: Path) -> None:
        shutil.copyfile(source, aside)

    return write_whole(to, write)
