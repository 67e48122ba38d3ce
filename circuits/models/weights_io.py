"""Weight files: written whole, read as plain tensors only, or refused with one sentence that names the file.

A weight is what ``HookedTransformer.state_dict()`` names; transformer-lens 3's derived buffers may lie in a file and are
left there. Safetensors and torch's zip files are mapped, so names and shapes are known before any value is read.
"""

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.files import write_whole
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import LENS_BUFFERS, HookedTransformer
from circuits.models.layers import dtype_of

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys under which training scripts put the state dict inside a larger one."""


def step_file(run: str | Path, step: int) -> Path:
    """Where a run folder keeps the weights of one step."""
    return Path(run) / "checkpoints" / f"step_{step:09d}.safetensors"


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], *, step: int | None = None) -> Path:
    """Write tensors as safetensors, whole or not at all.

    Args:
        step: kept as the file's only metadata entry; the order of several would differ from write to write.
    """
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = None if step is None else {"step": str(step)}
    return write_whole(path, lambda aside: save_file(plain, str(aside), metadata=metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a weight file, on the CPU, without transformer-lens' derived buffers.

    Raises:
        ValueError: the file is missing, truncated, not a weight file, or a pickle of more than tensors.
    """
    from safetensors.torch import load_file

    try:
        found = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; open the run again to see which checkpoints it has") from error
    except Exception as error:
        raise ValueError(_why_unreadable(path, error)) from error
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(
            f"{path} holds {_what(found)}, a checkpoint needs a state dict (name to tensor): "
            "save model.state_dict() with circuits.models.checkpoints.save_weights"
        )
    return {str(name): tensor for name, tensor in found.items() if not str(name).endswith(LENS_BUFFERS)}


def _unpickle(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on foreign pickle protocols; what it cannot read safely it refuses
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            return found[key]
    return found


def _what(found: Any) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    other = next((f"{name!r}: {type(value).__name__}" for name, value in found.items() if not isinstance(value, Tensor)), None)
    return "no tensors" if other is None else f"a dictionary with {other}"


def _why_unreadable(path: Path, error: Exception) -> str:
    """One sentence on a file that would not be read: what it is, and how to mend it."""
    text, mend = str(error), "copy or save it again, or delete it to go on without this step"
    with path.open("rb") as file:
        head = file.read(1 << 20)
    if path.suffix != ".safetensors" and (unsafe := _foreign_content(path, head, text)):
        return (
            f"{path} is an unsafe pickle: it holds more than tensors ({unsafe}), which could run code, and was not read; "
            "where you trust it, save its state dict as .safetensors and use that"
        )
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer of {size} bytes, weights are needed: fetch them with git lfs pull"
    announced = _announced_size(head) if path.suffix == ".safetensors" else None
    if size < 16 or (announced is not None and size < announced):
        at_least = f" and announces at least {announced:,}" if announced else ""
        return f"{path} is truncated: it has {size:,} bytes{at_least}; {mend}"
    reason = " ".join(text.split()).split(". ")[0][:160] or type(error).__name__
    return f"{path} is truncated, or no {path.suffix} weight file: it has {size:,} bytes ({reason}); {mend}"


def _foreign_content(path: Path, head: bytes, refusal: str) -> str | None:
    """What torch refused to unpickle, by its message; None if the file is only cut short or no pickle."""
    if re.search(r"Unsupported operand 14[789]", refusal):  # opcodes that protocol 4 began, none of which torch.save writes
        return "pickle protocol 4"
    if (named := re.search(r"GLOBAL:? (\S+)", refusal)) is None:
        return None
    module, _, name = named[1].rpartition(".")
    # A pickle that is cut inside a name seems to name something else; one that is whole has both names to their end.
    whole = zipfile.is_zipfile(path) or f"{module}\n{name}\n".encode() in head
    return named[1] if whole else None


def _announced_size(head: bytes) -> int | None:
    """How many bytes a safetensors file of this beginning has at least; None if it does not begin like one."""
    if len(head) < 9 or head[8:9] != b"{":
        return None
    end = 8 + int.from_bytes(head[:8], "little")
    try:
        header = json.loads(head[8:end])
        return end + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError):
        return end


@lru_cache(maxsize=8)
def expected_shapes(config: str) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every weight of a model of this config, which is given as JSON."""
    model = HookedTransformer(HookedTransformerConfig.model_validate_json(config))
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def check_weights(tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig | None, *, origin: str) -> None:
    """Refuse tensors that are not the weights of this config, by name, shape and dtype; no value is read.

    Args:
        cfg: None where a Hugging Face model's own loader decides on names and shapes.
        origin: the file, or other words for where the tensors come from, that begin the sentence.

    Raises:
        ValueError: a weight is missing, unexpected, of another shape, or not floating point.
    """
    if cfg is None:
        return
    needed, mend = expected_shapes(cfg.model_dump_json()), "pair the weights with the config they were trained with"
    if missing := sorted(set(needed) - set(tensors)):
        raise ValueError(f"{origin} lacks {_names(missing)} that its config needs; {mend}")
    if unexpected := sorted(set(tensors) - set(needed)):
        raise ValueError(f"{origin} holds {_names(unexpected)} that its config has no place for; {mend}")
    for name, shape in needed.items():
        given = tensors[name]
        if tuple(given.shape) != shape:
            raise ValueError(f"{origin}: {name} has shape {list(given.shape)}, its config needs {list(shape)}; {mend}")
        if not given.is_floating_point():
            raise ValueError(f"{origin}: {name} has dtype {given.dtype}, floating-point weights are needed; save them as float32")


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def check_finite_weights(tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Refuse NaN and infinity among the weights.

    Raises:
        ValueError: some are not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (broken := int((~torch.isfinite(tensor)).sum())):
            raise ValueError(
                f"{origin}: {name} holds NaN or infinite weights ({broken} of {tensor.numel()}), finite ones are needed; "
                "the run diverged or the file is damaged: copy it again, or leave the step out with run.select(steps)"
            )


def build_model(cfg: HookedTransformerConfig, tensors: Mapping[str, Tensor], *, origin: str) -> HookedTransformer:
    """A model in ``eval()`` mode with these weights, cast to ``cfg.dtype``.

    Raises:
        ValueError: the tensors are not the finite weights of this config.
    """
    check_weights(tensors, cfg, origin=origin)
    cast = {name: tensor.to(dtype_of(cfg)) for name, tensor in tensors.items()}
    check_finite_weights(cast, origin=origin)
    model = HookedTransformer(cfg)
    model.load_state_dict(cast)
    return model.eval()


def digest_weights(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of sha256 over canonical config JSON and sorted (name, dtype, shape, bytes) of the tensors."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read_tokens(path: Path) -> dict[str, Tensor]:
    """Evaluation tokens by kind, int64 ``[example, pos]``, and ``token_counts [d_vocab]`` if they lie with them.

    Raises:
        ValueError: the file is broken, or holds something else than integers of that rank.
    """
    stored = read_tensors(path)
    for name, ids in stored.items():
        _check_integers(path, name, ids, rank=1 if name == "token_counts" else 2)
    return {name: stored[name].to(torch.int64) for name in sorted(stored)}


def read_streams(path: Path) -> dict[str, np.ndarray]:
    """Token streams by name, int64 ``[token]``.

    Raises:
        ValueError: the file is broken, or holds something else than token ids of rank 1.
    """
    found = {}
    for name, ids in sorted(read_tensors(path).items()):
        _check_integers(path, name, ids, rank=1)
        found[name] = ids.to(torch.int64).numpy()
        if not len(ids) or found[name].min() < 0:
            what = f"the id {found[name].min()}" if len(ids) else "no tokens"
            raise ValueError(f"{path}: {name} holds {what}, token ids from 0 up are needed; save it again")
    return found


def _check_integers(path: Path, name: str, ids: Tensor, *, rank: int) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.ndim != rank:
        raise ValueError(f"{path}: {name} is {ids.dtype} {list(ids.shape)}, integers of rank {rank} are needed; save it again")
