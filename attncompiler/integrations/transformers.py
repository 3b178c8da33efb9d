"""Turns a variant into an attention implementation of Hugging Face transformers.

```python
from attncompiler.integrations.transformers import register

register(MyAttention, "my_attention")
model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="my_attention")
```

The variant is what the user changes about attention: its score, its normalizer, its own mask. What the model's config
and the call ask for joins it (``composition.py``): causal or bidirectional, padding, packed sequences, sliding windows,
chunks, soft caps, sinks, additive biases, the scale and the place in a cache. What cannot be honoured is an error
that names the field or argument; nothing is ignored.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    masking_utils,
)

from attncompiler.compiler import Operator
from attncompiler.frontend import trace
from attncompiler.integrations.composition import Request, build
from attncompiler.integrations.conditions import counts_from_the_start
from attncompiler.integrations.errors import LayerTensorError, RegistrationError
from attncompiler.integrations.transformers_calls import elements, mask_of_call
from attncompiler.integrations.transformers_layer import CAP_FIELDS, Layer
from attncompiler.integrations.transformers_masks import ModelMask, make_mask
from attncompiler.ir.expr import Index, Size, walk
from attncompiler.runtime.errors import VariantTypeError
from attncompiler.variant import Variant

ModuleTensors = Callable[[nn.Module], Mapping[str, Any]]

# Names under which a variant takes over what a model would else have done for it.
SINK_NAMES = ("sink", "sinks", "s_aux")
CAP_NAMES = ("softcap", "cap", "soft_cap", "attn_logit_softcapping")


def register(
    variant: Variant | type[Variant], name: str, *, tensors: ModuleTensors | None = None
) -> Implementation:
    """Make ``attn_implementation=name`` run models of transformers with a variant; returns what was registered.

    The name works wherever transformers takes one: ``from_pretrained``, ``from_config``,
    ``model.set_attn_implementation``. Registering a name again replaces the variant.

    Tensors the variant declares are found anew at each call: ``tensors(module)``, if given, returns a dict of them (and
    of values of parameters) for one attention layer; the others are attributes of that layer under their own name, so
    ``layer.self_attn.slope = nn.Parameter(...)`` trains and is saved with the model. A tensor named ``sink``, ``sinks``
    or ``s_aux`` takes the model's own sinks, a parameter named ``cap`` or ``softcap`` the model's soft cap.

    ``at.q`` and ``at.k`` count positions of the sequence, padding included; ``at.N`` counts those of the sequence
    so far, whatever a cache holds. The variant's own mask holds in every attention of the model, also between an
    encoder and a decoder. A query whose keys are all padding gives 0, where eager attention gives a mean.

    Raises VariantTypeError, RegistrationError, and the error of the front end for a mistake in the variant.
    """
    instance = variant() if inspect.isclass(variant) else variant
    if not isinstance(instance, Variant):
        raise VariantTypeError(found=repr(variant))
    _check_name(instance, name)
    implementation = Implementation(instance, name, tensors)
    # torch.compile leaves both alone: they look at closures and at numbers in tensors, which no tracer follows.
    disable = cast(Any, torch.compiler).disable
    AttentionInterface.register(name, disable(implementation.__call__))
    AttentionMaskInterface.register(name, disable(make_mask))
    _REGISTERED[name] = implementation
    return implementation


_REGISTERED: dict[str, Implementation] = {}


def _check_name(variant: Variant, name: str) -> None:
    detail = fix = ""
    parameters = inspect.signature(masking_utils.sdpa_mask).parameters
    if not {"q_length", "kv_length", "q_offset", "kv_offset", "mask_function"} <= set(parameters):
        detail = "this version of transformers describes masks in a way that is not known here"
        fix = "install the version that attncompiler's extra 'transformers' names"
    elif name == "eager" or (name in AttentionInterface() and name not in _REGISTERED):
        detail, fix = "transformers has an implementation of that name", "choose another name"
    elif not name.isidentifier() or any(
        word in name for word in ("flash", "sdpa", "flex_attention")
    ):
        detail = "transformers gives such a name a meaning of its own"
        fix = "choose an identifier without the words flash, sdpa and flex_attention"
    if detail:
        raise RegistrationError(
            location=None, variant=type(variant).__name__, name=name, detail=detail, fix=fix
        )


class Implementation:
    """A registered variant: the function transformers calls in every attention layer.

    ``operators`` holds the operators built so far, one for each way in which models asked for the variant.
    ``check(model)`` says whether a model's attention goes through it at all.
    """

    def __init__(self, variant: Variant, name: str, tensors: ModuleTensors | None) -> None:
        self.variant, self.name = variant, name
        self.operators: dict[tuple[object, ...], Operator] = {}
        self._tensors = tensors
        program = trace(variant).program
        roots = [expr for _, expr in program.expressions()]
        self._reads_positions = any(
            (isinstance(n, Index) and n.axis in "qk") or (isinstance(n, Size) and n.name == "N")
            for n in walk(*roots)
        )

    def __repr__(self) -> str:
        return f"<attncompiler implementation {self.name!r} of {type(self.variant).__name__}>"

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: ModelMask | Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Attention of one layer: query [B, H, M, D], key and value [B, G, N, D and Dv] give ([B, M, H, Dv], None).

        The arguments are those transformers gives to attention functions. Raises ModelRequestError or ModelMaskError
        for what the operator cannot honour.
        """
        layer = Layer(module)
        layer.check(dropout, others)
        mask = mask_of_call(layer, query, key, attention_mask, is_causal, sliding_window, others)
        key, value = key[:, :, : mask.keys], value[:, :, : mask.keys]
        arguments, taken = self._arguments(module, s_aux)
        if softcap is not None and self._applies_cap(layer, softcap, arguments):
            softcap = None
        self._check_sinks(layer, s_aux, taken)
        request = Request(
            mask.condition,
            key_offset=self._key_offset(layer, mask),
            softcap=softcap,
            bias=None if position_bias is None else position_bias[..., : mask.keys],
            dense=elements(layer, attention_mask, query, mask.keys),
            sinks=None if taken else s_aux,
        )
        operator = self._operator(request)
        batch = max(query.shape[0], key.shape[0])
        out = operator(
            _rows(query.expand(batch, -1, -1, -1)),
            _rows(key),
            _rows(value),
            q_start=mask.q_start,
            scale=self._scale(layer, scaling, arguments),
            **request.values(batch),
            **arguments,
        )
        return out.transpose(1, 2).contiguous(), None

    def check(self, model: PreTrainedModel) -> None:
        """Raise ModelRequestError if ``model`` has a part with attention of its own, which no registered name reaches.

        transformers accepts any name for such a model and lets it do as it did before.
        """
        for part in model.modules():
            if isinstance(part, PreTrainedModel) and not part._can_set_attn_implementation():
                Layer(part).refuse(
                    f"attn_implementation={self.name!r}",
                    "and has attention of its own, which does not go through AttentionInterface",
                    "use a model that does, or write the variant into this one with attncompiler.compile",
                )

    def _operator(self, request: Request) -> Operator:
        structure = request.structure
        if structure not in self.operators:
            origin = "attncompiler.integrations.transformers.register with this class"
            self.operators[structure] = build(self.variant, request, origin)
        return self.operators[structure]

    def _key_offset(self, layer: Layer, mask: ModelMask) -> int:
        """Where in the sequence the keys begin, if a formula would notice."""
        if mask.key_offset == 0:
            return 0
        cls = type(self.variant)
        positional = [n for n, t in cls._tensors.items() if {"q", "k"} & set(t.axes)]
        prepare = getattr(cls, "prepare", None)
        if prepare is not None and "q_start" in inspect.signature(prepare).parameters:
            positional.append("prepare(..., q_start)")
        if positional:
            layer.refuse(
                "a cache that keeps only the last keys (config.sliding_window)",
                f"and {cls.__name__}.{positional[0]} depends on where the keys lie in the sequence",
                "pass past_key_values=DynamicCache(), which keeps all of them",
            )
        noticed = self._reads_positions or counts_from_the_start(mask.condition)
        return mask.key_offset if noticed else 0

    def _arguments(
        self, module: nn.Module, sinks: Tensor | None
    ) -> tuple[dict[str, Any], str | None]:
        """The variant's own tensors for a layer, and the name of the one that takes the model's sinks."""
        found: dict[str, Any] = {} if self._tensors is None else dict(self._tensors(module))
        taken = next((n for n in SINK_NAMES if sinks is not None and found.get(n) is sinks), None)
        for name in type(self.variant)._tensors:
            if name in found:
                continue
            own = getattr(module, name, None)
            if isinstance(own, Tensor):
                found[name] = own
                taken = name if own is sinks else taken
            elif name in SINK_NAMES and sinks is not None:
                found[name], taken = sinks, name
            elif not hasattr(self.variant, "prepare"):  # which may make it
                declared = type(self.variant)._tensors[name]
                raise LayerTensorError(
                    location=declared.location,
                    layer=type(module).__name__,
                    name=name,
                    variant=type(self.variant).__name__,
                    axes=", ".join(map(str, declared.axes)),
                )
        return found, taken

    def _applies_cap(self, layer: Layer, softcap: float, arguments: Mapping[str, Any]) -> bool:
        """Whether the variant caps scores itself; if so, at the model's value."""
        own = next((n for n in CAP_NAMES if n in type(self.variant)._parameters), None)
        if own is None:
            return False
        value = arguments.get(own, getattr(self.variant, own))
        if not math.isclose(value, softcap):
            layer.refuse(
                f"softcap={softcap} ({layer.field(CAP_FIELDS, softcap)})",
                f"and {type(self.variant).__name__} caps at {own}={value}",
                f"register {type(self.variant).__name__}({own}={softcap})",
            )
        return True

    def _check_sinks(self, layer: Layer, sinks: Tensor | None, taken: str | None) -> None:
        if (
            sinks is not None
            and not taken
            and type(self.variant).normalize is not Variant.normalize
        ):
            layer.refuse(
                "sinks (s_aux)",
                f"and {type(self.variant).__name__} has a normalizer of its own, in which they have no place",
                'declare sink = Tensor("h") in the variant and use it in normalize: it takes the sinks',
            )

    def _scale(
        self, layer: Layer, scaling: float | None, arguments: Mapping[str, Any]
    ) -> float | None:
        """The model's scale, or None for the variant's own; both at once have to agree."""
        own = arguments.get("scale", self.variant.scale)
        if own is not None and scaling is not None and not math.isclose(own, scaling, rel_tol=1e-6):
            layer.refuse(
                f"scaling={scaling}",
                f"and {type(self.variant).__name__} sets scale = {own}",
                f"leave scale out of the variant, or write it into score: s * {own / scaling:g}",
            )
        return scaling if own is None else None


def _rows(x: Tensor) -> Tensor:
    """The tensor with a contiguous last axis, which transposed heads have already."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
