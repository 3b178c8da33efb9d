"""An attention layer of a transformers model: turns what it asks for beside a mask into errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers.utils import output_capturing

from attncompiler.integrations.conditions import visible
from attncompiler.integrations.errors import ModelRequestError
from attncompiler.integrations.transformers_masks import ModelMask

DROPOUT_FIELDS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "attn_dropout",
    "attention_dropout_rate",
    "dropout_rate",
    "dropout",
)
CAP_FIELDS = ("attn_logit_softcapping",)
# Arguments that reach attention functions and change nothing about attention, or did before it (rotary positions).
HARMLESS = frozenset(
    {
        "cache_position",
        "hidden_states",
        "labels",
        "layer_idx",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "mm_token_type_ids",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_value",
        "past_key_values",
        "position_embeddings",
        "return_dict",
        "shift_labels",
        "token_type_ids",
        "use_cache",
    }
)
# Arguments that take part in the mask.
HONOURED = frozenset({"position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"})


class Layer:
    """An attention layer as errors speak of it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.name = type(module).__name__
        self.config = getattr(module, "config", None)

    @property
    def is_causal(self) -> bool:
        """What the layer says of itself; as in transformers, it is causal when it says nothing."""
        return bool(getattr(self.module, "is_causal", True))

    def refuse(self, request: str, detail: str, fix: str) -> NoReturn:
        """Raise the error for a request that cannot be honoured."""
        raise ModelRequestError(
            location=None, layer=self.name, request=request, detail=detail, fix=fix
        )

    def field(self, names: tuple[str, ...], value: object) -> str:
        """The field of the config that has this value, such as ``config.attention_dropout``."""
        for name in names:
            if getattr(self.config, name, None) == value:
                return f"config.{name}"
        return f"config.{names[0]}"

    def check(self, dropout: float, others: Mapping[str, Any]) -> None:
        """Refuse what no operator does: dropout, weights as an output, arguments that nobody knows."""
        if dropout and self.module.training:
            field = self.field(DROPOUT_FIELDS, dropout)
            self.refuse(
                f"dropout={dropout} ({field})",
                "and operators drop no weights",
                f"set {field} = 0.0 before the model is made, or call model.eval()",
            )
        if others.get("output_attentions") or getattr(self.config, "output_attentions", False):
            self._refuse_weights()
        for name, value in others.items():
            if value is None or value is False or name in HARMLESS or name in HONOURED:
                continue
            self.refuse(
                name,
                "which operators do not know",
                'leave the argument out, or use attn_implementation="eager"',
            )

    def check_pass(self, mask: ModelMask, positions: Tensor | None) -> None:
        """Refuse what a whole forward pass asks for; its first layer finds it."""
        if mask.checked:
            return
        if _collects_attentions():
            self._refuse_weights()
        if not mask.packed:
            self._check_positions(mask, positions)
        mask.checked = True

    def _refuse_weights(self) -> NoReturn:
        self.refuse(
            "output_attentions",
            "and the weights are never all in memory",
            'use attn_implementation="eager" to look at them',
        )

    def _check_positions(self, mask: ModelMask, positions: Tensor | None) -> None:
        """Refuse positions that start over within a row when the mask does not keep the sequences apart."""
        rows = positions is not None and positions.dim() == 2
        if positions is None or not rows or not mask.causal:
            return
        if positions.shape[1] != mask.queries or mask.queries < 2:
            return
        valid = visible(mask.condition, mask.q_start, mask.queries, positions.device)
        falls = (positions[:, 1:] < positions[:, :-1]) & valid[:, 1:] & valid[:, :-1]
        if not bool(falls.any()):
            return
        self.refuse(
            "position_ids that start over",
            "and for a mask that mixes the sequences, as transformers makes it with a cache, with an attention_mask, "
            "and in models whose masks do not look at position_ids",
            "pass use_cache=False and no attention_mask; if that does not help, pass an attention_mask of four axes",
        )


def _collects_attentions() -> bool:
    """Whether a call with ``output_attentions=True`` is on its way: some layers do not hand the argument on."""
    collector = output_capturing._active_collector.get()
    return collector is not None and any("attentions" in name for name in collector)
