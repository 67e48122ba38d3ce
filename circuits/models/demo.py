"""The model that comes with the package: the last checkpoint of the 2-layer run trained on the standard library."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.files import read_tokenizer
from circuits.models.checkpoints import Checkpoints
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.models.layouts import read_config
from circuits.models.weights_io import build_model, read_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHECKOUT_RUN = Path(__file__).parents[2] / "fixtures" / "stdlib-2l"
"""Where the run lies in a checkout of the source; the wheel carries a copy of its end in ``circuits/demo``."""


def demo_model() -> HookedTransformer:
    """A trained 2-layer, 8-head, attention-only transformer, in ``eval()`` mode.

    Raises:
        ValueError: the package holds no demonstration model and is no checkout either.
    """
    data = files("circuits") / "demo"
    if not data.is_dir():
        run = _checkout_run()
        return run.at(run.steps[-1])
    with as_file(data) as folder:
        cfg = read_config(folder / "config.json")
        weights = folder / "model.safetensors"
        if not isinstance(cfg, HookedTransformerConfig):
            raise ValueError(f"{folder / 'config.json'} is not a config of this package; install circuits-interp again")
        return build_model(cfg, read_tensors(weights), origin=str(weights))


def demo_tokenizer() -> "Tokenizer":
    """The tokenizer of ``demo_model``: byte-level BPE, 1,024 ids, id 0 is ``<|bos|>``.

    Raises:
        ValueError: as ``demo_model``, or the tokenizer is missing.
    """
    data = files("circuits") / "demo"
    if not data.is_dir():
        _checkout_run()
        return read_tokenizer(CHECKOUT_RUN / "tokenizer.json")
    with as_file(data) as folder:
        return read_tokenizer(folder / "tokenizer.json")


def _checkout_run() -> Checkpoints:
    if not CHECKOUT_RUN.is_dir():
        raise ValueError(
            f"the demonstration model is neither in the package (circuits/demo) nor in {CHECKOUT_RUN}; "
            "install the circuits-interp wheel, or work in a checkout that has its fixtures"
        )
    return Checkpoints.from_dir(CHECKOUT_RUN)
