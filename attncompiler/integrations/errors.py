"""Turns what a host library asks for and an operator cannot give into messages that name the field or argument."""

from __future__ import annotations

from attncompiler.errors import AttnCompilerError


class RegistrationError(AttnCompilerError):
    """A name or a set of arguments under which no operator can be registered."""

    message = "cannot register {variant} as {name!r}: {detail}"
    advice = "{fix}"


class LayerTensorError(AttnCompilerError):
    """A tensor that the variant declares and neither the layer nor ``register`` gives."""

    message = "{layer} has no tensor {name!r}, which {variant} declares over ({axes})"
    advice = (
        "give each attention layer one before the model runs, layer.{name} = nn.Parameter(...), or pass "
        "tensors=lambda layer: {{'{name}': ...}} to register"
    )


class ModelRequestError(AttnCompilerError):
    """Something a model's config or a call asks of its attention that the operator cannot honour."""

    message = "{layer} asks for {request}, {detail}"
    advice = "{fix}"


class ModelMaskError(AttnCompilerError):
    """A mask that a model describes in a way that has no formula, or that does not fit the call."""

    message = "the mask of {layer}: {detail}"
    advice = "{fix}"
