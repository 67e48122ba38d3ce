"""Configuration of a HookedTransformer: every field is honoured or refused with a sentence.

Field names, meanings and defaults are those of transformer-lens 3.9's ``HookedTransformerConfig`` wherever both
have the field. What the small models of this library never use (quantised weights, grouped keys, local attention,
mixtures of experts, encoder-decoders, ...) is not a field here, so giving it is an error and not a silent no-op.
"""

import math
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, model_validator

ACTIVATIONS = ("relu", "gelu", "gelu_new", "gelu_fast", "silu", "solu", "solu_ln")


class HookedTransformerConfig(BaseModel, frozen=True, extra="forbid"):
    """Shape and arithmetic of one HookedTransformer.

    Args:
        n_layers, d_model, n_heads, d_head, n_ctx, d_vocab: sizes; ``d_vocab_out`` defaults to ``d_vocab``.
        attn_only: no MLPs. Otherwise ``d_mlp`` (default ``4 * d_model``) and ``act_fn`` describe them, and
            ``parallel_attn_mlp`` makes attention and MLP read the same residual stream.
        normalization_type: ``"LN"`` and ``"RMS"`` carry weights, ``"LNPre"`` and ``"RMSPre"`` do not, ``None`` is no
            norm. ``final_rms`` makes only the final norm an RMS norm.
        positional_embedding_type: ``"shortformer"`` adds ``W_pos`` to what queries and keys read and never to the
            residual stream (Press et al. 2021); ``"standard"`` adds it to the stream; ``"rotary"`` turns the first
            ``rotary_dim`` dimensions of queries and keys; ``"none"`` has no positions.
        positional_init: ``"gpt2"`` (normal) or ``"sinusoidal"`` initial values of ``W_pos``.
        smeared_keys: ``k_j <- s k_j + (1 - s) k_{j-1}`` with ``s = sigmoid(alpha)`` learned per head, the first key
            unchanged (Olsson et al. 2022, argument 2); before any rotation.
        use_attn_scale, attn_scale, scale_attn_by_inverse_layer_idx: scores are divided by ``attn_scale`` (default
            ``sqrt(d_head)``), and by ``layer + 1`` if the last is set.
        attn_scores_soft_cap, output_logits_soft_cap: ``c * tanh(x / c)``; -1 is none.
        use_attn_result, use_split_qkv_input, use_attn_in, use_hook_mlp_in: switch the memory-hungry hook points on.
        seed: of the initial weights; ``None`` is 0, so that a model is the same each time it is built.

    Raises:
        ValueError: a size is not positive, or fields contradict each other.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    n_ctx: int
    d_vocab: int
    d_vocab_out: int = -1
    attn_only: bool = False
    d_mlp: int | None = None
    act_fn: Literal["relu", "gelu", "gelu_new", "gelu_fast", "silu", "solu", "solu_ln"] | None = None
    parallel_attn_mlp: bool = False
    normalization_type: Literal["LN", "LNPre", "RMS", "RMSPre"] | None = "LN"
    final_rms: bool = False
    eps: float = 1e-5
    positional_embedding_type: Literal["standard", "shortformer", "rotary", "none"] = "standard"
    positional_init: Literal["gpt2", "sinusoidal"] = "gpt2"
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    rotary_adjacent_pairs: bool = False
    smeared_keys: bool = False
    use_attn_scale: bool = True
    attn_scale: float = -1.0
    scale_attn_by_inverse_layer_idx: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False
    attention_dir: Literal["causal"] = "causal"
    initializer_range: float = -1.0
    init_mode: Literal["gpt2"] = "gpt2"
    seed: int | None = None
    dtype: Literal["float32", "float64"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        d_model, d_head = filled.get("d_model"), filled.get("d_head")
        if filled.get("d_vocab_out", -1) == -1:
            filled["d_vocab_out"] = filled.get("d_vocab", -1)
        if filled.get("positional_embedding_type") == "rotary" and filled.get("rotary_dim") is None:
            filled["rotary_dim"] = d_head
        if isinstance(d_model, int) and d_model > 0:
            if not filled.get("attn_only", False) and filled.get("d_mlp") is None:
                filled["d_mlp"] = 4 * d_model
            if filled.get("initializer_range", -1.0) == -1.0:
                filled["initializer_range"] = 0.8 / math.sqrt(d_model)
        if (
            isinstance(d_head, int)
            and d_head > 0
            and filled.get("use_attn_scale", True)
            and filled.get("attn_scale", -1.0) == -1.0
        ):
            filled["attn_scale"] = math.sqrt(d_head)
        return filled

    @model_validator(mode="after")
    def _check(self) -> "HookedTransformerConfig":
        for field in ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab", "d_vocab_out"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be a positive integer")
        if not self.attn_only and self.act_fn is None:
            raise ValueError(f"a model with MLPs needs act_fn, one of {', '.join(ACTIVATIONS)}; or set attn_only=True")
        if self.attn_only and (self.act_fn is not None or self.d_mlp is not None or self.parallel_attn_mlp):
            raise ValueError("attn_only=True has no MLP, so d_mlp, act_fn and parallel_attn_mlp must stay unset")
        if not self.attn_only and (self.d_mlp is None or self.d_mlp < 1):
            raise ValueError(f"d_mlp is {self.d_mlp}; it must be a positive integer")
        if self.attn_only and self.use_hook_mlp_in:
            raise ValueError("use_hook_mlp_in is set but attn_only=True has no MLP; drop one of them")
        if self.normalization_type is None and self.final_rms:
            raise ValueError("final_rms is set but normalization_type is None; choose a norm or drop final_rms")
        for field in ("rotary_dim", "rotary_base", "rotary_adjacent_pairs"):
            if self.positional_embedding_type != "rotary" and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is set but positional_embedding_type is not 'rotary'; set one or drop the other")
        if self.rotary_dim is not None and not (0 < self.rotary_dim <= self.d_head and self.rotary_dim % 2 == 0):
            raise ValueError(f"rotary_dim is {self.rotary_dim}; it must be even and at most d_head = {self.d_head}")
        if self.positional_init == "sinusoidal" and self.positional_embedding_type not in ("standard", "shortformer"):
            raise ValueError("positional_init='sinusoidal' needs learned positions: 'standard' or 'shortformer'")
        if not self.use_attn_scale and self.attn_scale != -1.0:
            raise ValueError(f"attn_scale is {self.attn_scale} but use_attn_scale=False divides by 1; drop one of them")
        for field in ("attn_scale", "attn_scores_soft_cap", "output_logits_soft_cap"):
            value = getattr(self, field)
            if value != -1.0 and not 0 < value < math.inf:
                raise ValueError(
                    f"{field} is {value}; it must be positive, or -1 for {'sqrt(d_head)' if field == 'attn_scale' else 'none'}"
                )
        for field in ("eps", "initializer_range"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field} is {getattr(self, field)}; it must not be negative")
        if not 0 < self.rotary_base < math.inf:
            raise ValueError(f"rotary_base is {self.rotary_base}; it must be positive")
        if self.use_attn_in and self.use_split_qkv_input:
            raise ValueError("use_attn_in and use_split_qkv_input exclude each other; choose one")
        return self

    @classmethod
    def parse(cls, fields: dict[str, Any], *, origin: str = "config") -> "HookedTransformerConfig":
        """Build a config from a plain dictionary; one sentence per fault, naming where it came from.

        Raises:
            ValueError: a field is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ValueError(f"{origin}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """The faults of a pydantic error as one readable sentence (field: what is wrong)."""
    faults = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        what = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            faults.append(f"{where} is missing; give it a value")
        elif fault["type"] == "extra_forbidden":
            faults.append(f"{where} is not a field here (given {fault['input']!r}); drop it")
        elif fault["type"] == "value_error":
            faults.append(f"{where}: {what}" if where else what)
        else:
            faults.append(f"{where} is {fault['input']!r}; {what[0].lower()}{what[1:]}")
    return "; ".join(faults)
