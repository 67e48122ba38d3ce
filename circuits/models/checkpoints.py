"""Checkpoints: a training run as a lazy, labelled sequence of models.

Opening a run reads names, shapes and sizes; weights are read when a step is asked for, and no model is kept. What is
broken is refused with one sentence that names the file: what can be seen without reading values when the run is opened,
NaN and infinity when the step is.
"""

import html
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from torch import Tensor

from circuits.files import read_json, read_tokenizer
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.models.layouts import Config, Source, find_run, in_folders, revision_folder, state_sources
from circuits.models.weights_io import build_model, check_finite_weights, digest_weights, read_streams, read_tokens
from circuits.models.weights_io import save_weights as save_weights
from circuits.models.weights_io import step_file as step_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Checkpoints:
    """A run: models of one config at increasing training steps.

    Example:
        >>> from circuits import Checkpoints, HookedTransformer
        >>> model = HookedTransformer(dict(n_layers=1, d_model=8, n_heads=2, d_head=4, n_ctx=16, d_vocab=50, attn_only=True))
        >>> run = Checkpoints.from_states({0: model.state_dict()}, model.cfg, name="untrained")
        >>> run
        Checkpoints('untrained': 1 checkpoint, step 0, 1,298 parameters, 5.2 kB)
        >>> [step for step, model in run]
        [0]

    Attributes:
        steps: training steps, ascending. labels: each step's file or folder name.
        name: of the run. path: its folder, None in memory. meta: its ``meta.json``.
    """

    def __init__(self, sources: Mapping[int, Source], config: Config, *, name: str, path: Path | None = None):
        self.name, self.path = name, path
        self.meta: dict[str, Any] = {}
        self._sources, self._config = dict(sorted(sources.items())), config
        self._hashes: dict[int, str] = {}
        self._with_results = True
        if (found := self.beside("meta.json")) is not None:
            self.meta = read_json(found, what="the run's description")
            if not isinstance(self.meta, dict):
                raise ValueError(f"{found} holds a {type(self.meta).__name__}, an object is needed; mend or delete it")
            self.name = str(self.meta.get("name", name))

    @classmethod
    def from_dir(cls, path: str | Path) -> "Checkpoints":
        """Open a run folder.

        Args:
            path: a folder with ``config.json`` and ``checkpoints/step_*.safetensors``, with weight files beside
                ``config.json`` (``step_*.safetensors``, ``*_1000.pt``), or with one folder per checkpoint.

        Raises:
            ValueError: the folder, its config or a weight file is missing, broken, unsafe or of another shape.
        """
        path = Path(path).absolute()
        config, sources = find_run(path)
        return cls(sources, config, name=path.resolve().name, path=path)

    @classmethod
    def from_states(
        cls, states: Mapping[SupportsIndex, Any], cfg: HookedTransformerConfig | Mapping[str, Any], *, name: str = "states"
    ) -> "Checkpoints":
        """A run of state dicts in memory, copied.

        Args:
            states: ``{step: model.state_dict()}``, names and shapes as ``cfg`` says.

        Raises:
            ValueError: there are none, one is not of this config, or two are the same memory.
            TypeError: one is not a state dict.
        """
        if not isinstance(cfg, HookedTransformerConfig):
            cfg = HookedTransformerConfig.parse(dict(cfg))
        return cls(state_sources(states, cfg), cfg, name=name)

    @classmethod
    def from_hub(cls, repo: str | Path, revisions: Sequence[str | int]) -> "Checkpoints":
        """Open revisions of a repository, each a whole model, as Pythia's ``step1000``.

        Args:
            repo: a local folder with one folder per revision, or a name on the Hugging Face hub; every revision named is
                then fetched into the hub's cache first (needs the ``hub`` extra).
            revisions: their names; an integer ``n`` is ``step<n>``.

        Raises:
            ValueError: a revision is missing or cannot be fetched; what ``from_dir`` refuses.
        """
        if isinstance(revisions, str) or not revisions:
            raise ValueError(f"revisions is {revisions!r}; give a list of names such as ['step0', 'step1000']")
        local = Path(repo).absolute() if Path(repo).is_dir() else None
        names = [revision if isinstance(revision, str) else f"step{revision}" for revision in revisions]
        config, sources = in_folders([(name, revision_folder(str(local or repo), name)) for name in names])
        return cls(sources, config, name=str(repo) if local is None else local.resolve().name, path=local)

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(self._sources)

    @property
    def labels(self) -> dict[int, str]:
        return {step: source.label for step, source in self._sources.items()}

    @cached_property
    def cfg(self) -> HookedTransformerConfig:
        """The config all models share; a Hugging Face run builds its first model to know it."""
        return self._config if isinstance(self._config, HookedTransformerConfig) else self.at(self.steps[0]).cfg

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, step: object) -> bool:
        return step in self._sources

    def __iter__(self) -> Iterator[tuple[int, HookedTransformer]]:
        """(step, model) in order; the run keeps no model, so one is alive unless the caller keeps more."""
        for step in self.steps:
            yield step, self.at(step)

    def at(self, step: Any) -> HookedTransformer:
        """The model of one step, new each time, in ``eval()`` mode and ``cfg.dtype``.

        Raises:
            ValueError: there is no such step (the nearest are named), or its weights are broken.
            TypeError: the step is not an integer.
        """
        source = self._source(step)
        tensors = source.tensors()
        if isinstance(self._config, HookedTransformerConfig):
            return build_model(self._config, tensors, origin=source.origin)
        from circuits.models.convert import from_hf

        check_finite_weights(tensors, origin=source.origin)
        del tensors
        return from_hf(str(source.folder)).eval()

    def select(self, steps: Iterable[int]) -> "Checkpoints":
        """The same run with only these steps.

        Raises:
            ValueError: one is not in the run, or none is given.
        """
        chosen = {operator.index(step): self._source(step) for step in steps}
        if not chosen:
            raise ValueError(f"no step was selected; give some of the {len(self)} steps {self._range()}")
        selected = copy(self)
        selected._sources = dict(sorted(chosen.items()))
        return selected

    def weights_hash(self, step: Any) -> str:
        """Identity of a checkpoint: 16 hex digits of sha256 over config and stored tensors, read once, no model built.

        Independent of the file's name, format and metadata. Config fields at their defaults do not count, so that a field
        added later changes no hash.

        Raises:
            ValueError: there is no such step, or its file cannot be read.
        """
        source, step = self._source(step), operator.index(step)
        if step not in self._hashes:
            config = self._config
            fields = config if isinstance(config, dict) else config.model_dump(mode="json", exclude_defaults=True)
            self._hashes[step] = digest_weights(fields, source.tensors())
        return self._hashes[step]

    @property
    def results(self) -> Path | None:
        """The folder of results that come with the run, ``results`` beside its config; None where there is none."""
        folder = None if self.path is None else self.path / "results"
        return folder if self._with_results and folder is not None and folder.is_dir() else None

    def without_results(self) -> "Checkpoints":
        """The same run as if no results came with it, so that everything is measured anew."""
        bare = copy(self)
        bare._with_results = False
        return bare

    def _source(self, step: Any) -> Source:
        try:
            wanted = operator.index(step)
        except TypeError as error:
            raise TypeError(f"step is {step!r} ({type(step).__name__}), an integer is needed: one of run.steps") from error
        if wanted not in self._sources:
            nearest = sorted(sorted(self.steps, key=lambda known: abs(known - wanted))[:3])
            raise ValueError(
                f"{self.name} has no checkpoint at step {wanted}; the nearest are {', '.join(map(str, nearest))} "
                f"of {len(self)} ({self._range()}): use run.at({min(nearest, key=lambda known: abs(known - wanted))})"
            )
        return self._sources[wanted]

    def beside(self, name: str) -> Path | None:
        """A file of the run, in its folder or its first checkpoint's; None if there is none."""
        first = next(iter(self._sources.values()))
        for folder in (self.path, first.files[0].parent if first.files else None):
            if folder is not None and (folder / name).is_file():
                return folder / name
        return None

    @cached_property
    def tokenizer(self) -> "Tokenizer | None":
        """The run's ``tokenizer.json``, if it has one."""
        found = self.beside("tokenizer.json")
        return None if found is None else read_tokenizer(found)

    @cached_property
    def _stored_tokens(self) -> dict[str, Tensor]:
        found = self.beside("evaluation.safetensors")
        return {} if found is None else read_tokens(found)

    @property
    def evaluation(self) -> dict[str, Tensor]:
        """The run's evaluation tokens by kind, int64 ``[example, pos]``; empty where it ships none."""
        return {name: ids for name, ids in self._stored_tokens.items() if name != "token_counts"}

    @property
    def token_counts(self) -> np.ndarray | None:
        """How often each id occurs in the training text, int64 ``[d_vocab]``."""
        counts = self._stored_tokens.get("token_counts")
        return None if counts is None else counts.numpy()

    @cached_property
    def corpus(self) -> dict[str, np.ndarray]:
        """The run's text for n-gram statistics: token streams int64 ``[token]`` without BOS, empty where it ships none.

        Of each corpus kind ``<kind>``, held out from training, and ``<kind>_train``, a sample of what was trained on; what
        ``circuits.dynamics.train.corpus_tokens`` says of their lengths. Read when first asked for. Runs of one text can share
        its streams: a run without them reads those of the run that ``meta.json`` names as ``corpus_of``, relative to its folder.

        Raises:
            ValueError: ``corpus.safetensors`` is broken, or holds something else than flat streams of token ids; the run that
                has it is not there.
        """
        found, other = self.beside("corpus.safetensors"), self.meta.get("corpus_of")
        if found is None and other and self.path is not None:
            found = self.path / str(other) / "corpus.safetensors"
            if not found.is_file():
                raise ValueError(f"{self.name} reads its text from {other}, and there is no {found}; put that run beside it")
        return {} if found is None else read_streams(found)

    def export(self, out: str | Path, *, steps: Iterable[int] | None = None, dtype: str = "float16") -> Path:
        """Write a thinned copy of the run as a run folder; the same call writes the same bytes.

        Written are ``config.json``, the checkpoints, tokenizer, evaluation tokens and corpus streams (uint16 where they fit),
        ``losses.csv`` and ``train.json`` where the run has them, and last ``meta.json`` with the steps, the dtype and each
        file's sha256.

        Args:
            steps: all by default. dtype: ``"float16"``, ``"float32"`` or ``"float64"``.

        Returns:
            The folder, which ``from_dir`` opens.

        Raises:
            ValueError: a weight exceeds the dtype's range, or ``out`` holds something else; nothing is written then.
        """
        from circuits.models.export import export_run

        return export_run(self if steps is None else self.select(steps), Path(out), dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        """What a process pool needs: where things are and what is hashed, not what was read."""
        return {name: value for name, value in vars(self).items() if name not in ("tokenizer", "_stored_tokens", "corpus")}

    def _range(self) -> str:
        return f"{self.steps[0]}..{self.steps[-1]}" if len(self) > 1 else f"{self.steps[0]}"

    def _facts(self) -> list[str]:
        size = sum(source.n_bytes for source in self._sources.values())
        facts = [
            f"{len(self)} checkpoints, steps {self._range()}" if len(self) > 1 else f"1 checkpoint, step {self._range()}",
            f"{self._sources[self.steps[0]].n_parameters:,} parameters",
            f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB",
        ]
        if len(self) > 1:
            gap, where = max((b - a, -a) for a, b in zip(self.steps, self.steps[1:], strict=False))
            facts.append(f"largest gap {gap} (at {-where})")
        return facts

    def __repr__(self) -> str:
        return f"Checkpoints({self.name!r}: {', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        """The same facts as one line, and the steps, all escaped."""
        shown = [*map(str, self.steps[:40])] + ([f"... {self.steps[-1]}"] if len(self) > 40 else [])
        return (
            f"<div><b>{html.escape(self.name)}</b>: {html.escape(', '.join(self._facts()))}"
            f'<br><span style="color:#666;font-size:90%">{html.escape(" ".join(shown))}</span></div>'
        )
