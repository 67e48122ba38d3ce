"""A training run of tiny models, how it is written in each layout and what it holds; and HTML pages, taken apart."""

from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def tiny():
    """The config, ``weights(seed)``, ``same(a, b)``, and what writes a run: ``run(path)``, ``folders(path, labels)``."""
    import torch

    from circuits.files import write_json
    from circuits.models.checkpoints import save_weights, step_file
    from circuits.models.config import HookedTransformerConfig
    from circuits.models.hooked import HookedTransformer

    cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, n_ctx=8, d_vocab=11, attn_only=True)

    def weights(seed):
        """The state dict of an untrained model."""
        return HookedTransformer(cfg.model_copy(update={"seed": seed})).state_dict()

    def same(a, b):
        """Whether two state dicts have the same names and values."""
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    def run(path: Path, steps=(0, 10, 100), changes=None):
        """A run folder as ``circuits train`` leaves it; ``changes`` replace weights at the last step, None drops one."""
        write_json(path / "config.json", cfg.model_dump(mode="json"))
        for step in steps:
            state = weights(step) | ((changes or {}) if step == steps[-1] else {})
            save_weights(step_file(path, step), {name: weight for name, weight in state.items() if weight is not None}, step=step)
        return path

    def folders(path: Path, labels, config=cfg):
        """One folder per checkpoint, all with the same weights."""
        for label in labels:
            write_json(path / label / "config.json", config.model_dump(mode="json"))
            save_weights(path / label / "model.safetensors", HookedTransformer(config).state_dict())
        return path

    return SimpleNamespace(cfg=cfg, weights=weights, same=same, run=run, folders=folders)


class Elements(HTMLParser):
    """What a browser would build: (tag, attributes) of every element, and the text of each script."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="session")
def elements():
    """``elements(page)``: what a browser would build of a page."""
    return Elements
