"""Turns mistakes at build or call time into messages with a remedy; see ``attncompiler/errors.py`` for the form."""

from __future__ import annotations

from attncompiler.errors import AttnCompilerError


class BackendError(AttnCompilerError):
    """A backend name that does not exist or cannot run here."""

    message = "there is no backend {name!r} here"
    advice = "choose one of {known}"


class VariantTypeError(AttnCompilerError):
    """Something else than a variant was given to ``compile``."""

    message = "{found} is no variant"
    advice = "derive a class from attncompiler.dsl.Variant and pass the class or an instance"


class MissingCompilerError(AttnCompilerError):
    """No C++ compiler was found."""

    message = "no C++ compiler found: {detail}"
    advice = (
        "install one (Debian and Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select "
        "--install) or set CXX to its path"
    )


class CompilerFailedError(AttnCompilerError):
    """The C++ compiler refused a generated file."""

    message = "{compiler} could not build the kernel of {variant}:\n{output}"
    advice = (
        "compilers known to work are GCC 9 and later and Clang 12 and later; set CXX to choose one. "
        "The source is kept at {source}"
    )


class UnknownTargetError(AttnCompilerError):
    """The name of a GPU architecture that kernels are not planned for."""

    message = "there is no GPU architecture {name!r} here"
    advice = "choose one of {known}"


class OldGpuError(AttnCompilerError):
    """A GPU that lacks what the generated kernels need."""

    message = "{name} is older than {oldest}, the first GPU architecture with {lacks}"
    advice = (
        'move the tensors to the CPU and compile with backend="cpp" (or "auto"), or use a newer GPU'
    )


class NoConfigurationError(AttnCompilerError):
    """A kernel of which no configuration fits a GPU; ``other`` may name a backend that has more of them."""

    message = "no configuration of the {kind} kernel is left for {dtype} on {arch}:\n{reasons}"
    advice = (
        "try {other}--dtype bfloat16 or a smaller --head-dim or --value-dim, or leave {arch} out"
    )


class MissingTritonError(AttnCompilerError):
    """Triton, which compiles GPU kernels, is not installed."""

    message = "kernels for GPUs need Triton, which is not installed"
    advice = "install it: pip install triton (Linux on x86-64)"


class MissingTilelangError(AttnCompilerError):
    """TileLang, which compiles GPU kernels, is not installed."""

    message = "kernels of the tilelang backend need TileLang, which is not installed"
    advice = "install it: pip install tilelang (Linux on x86-64)"


class MissingBinaryError(AttnCompilerError):
    """A call that a package carries no TileLang binary for, on a machine without TileLang."""

    message = (
        "this package has no binary of its {kernel} kernel for {asked} ({known}), and TileLang, which would build one, "
        "is not installed"
    )
    advice = "{fix}"


class CudaDriverError(AttnCompilerError):
    """The CUDA driver does not do what the launch of a binary asks for."""

    message = "the CUDA driver failed in {what}: {why}"
    advice = "{fix}"


class CacheError(AttnCompilerError):
    """The folder for built kernels cannot be written."""

    message = "cannot write built kernels to {folder}: {reason}"
    advice = "set ATTNCOMPILER_CACHE to a folder that can be written"


class NotBuiltError(AttnCompilerError):
    """A call of a package that does not carry the kernel it needs."""

    message = "this package of {variant} is built for {known}, not for {asked}"
    advice = "{fix}"


class DtypeError(AttnCompilerError):
    """An element type the operator does not take, or types that differ."""

    message = "{name}: {detail}"
    advice = "{fix}"


class DeviceError(AttnCompilerError):
    """A tensor on a device the backend does not run on, or on another one than q."""

    message = "{name} is on {device}, {why}"
    advice = "{fix}"


class LayoutError(AttnCompilerError):
    """A tensor whose last axis is not contiguous."""

    message = "{name} has stride {stride} along its last axis, which must be contiguous"
    advice = "pass {name}.contiguous(), or keep the head dimension last when you transpose"


class LimitError(AttnCompilerError):
    """A size beyond what kernels are built for."""

    message = "{name} is {value}; {limit}"
    advice = "{fix}"


class LayoutStartError(AttnCompilerError):
    """A call of a variant with a layout does not start at the first token."""

    message = "q_start is {q_start}, but the layout of {variant} is for whole grids of tokens"
    advice = "leave q_start out; for single queries compile the variant without its layout"


class BlockListError(AttnCompilerError):
    """A block list whose entries name no block, or one twice."""

    message = "sparsity: the list of query block {row} (batch {batch}, head {head}) {detail}"
    advice = "{fix}"


class ForwardModeError(AttnCompilerError):
    """A call that would need a forward-mode derivative."""

    message = (
        "{name} carries a tangent of forward-mode differentiation, which operators do not have"
    )
    advice = "differentiate in reverse mode: out.backward(...) or torch.autograd.grad(...)"


class TransformError(AttnCompilerError):
    """A call inside ``torch.vmap``, ``torch.func.grad`` and the like."""

    message = "{name} is inside a transform of torch.func, which operators have no rule for"
    advice = (
        "call the operator on ordinary tensors: its first axis is the batch, "
        "and torch.autograd.grad gives gradients"
    )


class EightBitGradientError(AttnCompilerError):
    """A call with 8-bit inputs of which some tensor requires a gradient."""

    message = (
        "{variant} has no gradients for inputs of {dtype}: its backward kernels take 16 and 32 bits"
    )
    advice = (
        "call it inside torch.no_grad(), or convert q, k and v to bfloat16, which holds them exactly: "
        "q.to(torch.bfloat16)"
    )


class DoubleBackwardError(AttnCompilerError):
    """A gradient of a gradient."""

    message = "the gradients of {variant} cannot be differentiated once more"
    advice = (
        'compile the variant with backend="dense" where second derivatives are needed, or call backward without '
        "create_graph=True"
    )


class ModuleCaptureError(AttnCompilerError):
    """A parameter that a variant's slots captured, which a module made of it would not hold."""

    message = (
        "a module of {variant} would not hold a parameter of shape {shape} that its slots read: "
        "no optimizer would find it, and no state_dict"
    )
    advice = "declare it in the variant, weight = Tensor(axes...), and give it here: op.module(weight=parameter)"


class PositionalTensorError(AttnCompilerError):
    """More than q, k and v given by position."""

    message = "{variant} takes q, k and v by position, and {count} more were given"
    advice = "pass the rest by name: {known}"


class ModuleNameError(AttnCompilerError):
    """A tensor that a module cannot hold under its name."""

    message = "a module cannot hold the tensor {name!r} of {variant}: torch.nn.Module has an attribute of that name"
    advice = "pass it at the call instead, or rename it in the variant"
