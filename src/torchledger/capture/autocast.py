"""Autocast on meta: the casts that torch would make on the device where the model lives, made by torch's own lists.

torch casts in the dispatcher, by a key that tensors of a device carry and tensors on meta lack. While autocast is on
for the model's device, a key that no build of torch uses stands in for that one. Its place is the same, above autograd:
so autograd sees the casts, and what C++ calls inside of another operation (`einsum`'s `bmm`) is cast like the rest.

The lists, the rule of each list and that of the cache are those of torch 2.13, aten/src/ATen/autocast_mode.h and .cpp
(docs: https://docs.pytorch.org/docs/stable/amp.html); cuDNN's recurrent layers have theirs in cudnn/AutocastRNN.cpp.
An operation that a torch does not have is passed over.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.cuda.amp.common
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torchledger.capture.operations import overloads
from torchledger.errors import UserError
from torchledger.inputs import DtypeLike, as_dtype

AutocastLike = DtypeLike | None
MODELLED = ("cuda", "cpu")
DTYPES = (torch.bfloat16, torch.float16)
UNMODELLED = "autocast was on for {} and is not modelled there: operations keep the dtypes of their inputs"
SCRIPTED = (
    "under autocast, TorchScript casts by rules of its own: scripted modules are cast as others are in inference, and "
    "not at all where gradients are recorded"
)

# By rule: cast all to the lower precision; cast all to float32; ask for a float32 result (sums, softmax) where no dtype
# was asked for; the same by another overload; cast all to the widest among them; refuse.
_LISTS: Mapping[str, Mapping[str, str]] = {
    "cuda": {
        "lower": """
            _convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input
            conv_transpose3d.input convolution cudnn_convolution cudnn_convolution_transpose prelu addmm addmv addr
            matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
            _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
            _scaled_dot_product_flash_attention scaled_dot_product_attention
        """,
        "float32": """
            acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
            pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim
            nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d
            hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
            multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
            binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
            _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d
            _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d
            upsample_bicubic2d _upsample_bicubic2d_aa
        """,
        "float32 result": """
            prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
            linalg_matrix_norm.str_ord sum sum.dim_IntList
        """,
        "float32 overload": "norm.Scalar norm.ScalarOpt_dim",
        "widest": """
            addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
        """,
        "refused": "binary_cross_entropy",
    },
    "cpu": {
        "lower": """
            conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding bmm mm linalg_vecdot baddbmm addmm
            _addmm_activation addbmm linear _convolution.deprecated matmul conv_tbc mkldnn_rnn_layer conv_transpose1d
            conv_transpose2d.input conv_transpose3d.input prelu scaled_dot_product_attention
            _native_multi_head_attention
        """,
        "float32": """
            avg_pool3d binary_cross_entropy grid_sampler polar prod prod.dim_int quantile quantile.scalar nanquantile
            nanquantile.scalar stft stft.center cdist grid_sampler_2d _grid_sampler_2d_cpu_fallback grid_sampler_3d
            trace view_as_complex cholesky cholesky_inverse cholesky_solve inverse lu_solve orgqr ormqr pinverse
            max_pool3d max_unpool2d max_unpool3d adaptive_avg_pool3d reflection_pad1d reflection_pad2d replication_pad1d
            replication_pad2d replication_pad3d mse_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss
            poisson_nll_loss smooth_l1_loss cross_entropy_loss l1_loss huber_loss margin_ranking_loss soft_margin_loss
            triplet_margin_loss multi_margin_loss ctc_loss.IntList ctc_loss.Tensor kl_div multilabel_margin_loss
            binary_cross_entropy_with_logits fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft
            fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn fft_hfft fft_ihfft linalg_cond linalg_cond.p_str
            linalg_matrix_rank linalg_matrix_rank.tol_tensor linalg_matrix_rank.atol_rtol_tensor
            linalg_matrix_rank.atol_rtol_float linalg_solve linalg_cholesky linalg_svdvals linalg_eigvals
            linalg_eigvalsh linalg_inv linalg_householder_product linalg_tensorinv linalg_tensorsolve
            fake_quantize_per_tensor_affine geqrf _lu_with_info qr svd triangular_solve fractional_max_pool2d
            fractional_max_pool3d adaptive_max_pool3d multilabel_margin_loss_forward linalg_qr linalg_cholesky_ex
            linalg_svd linalg_eig linalg_eigh linalg_lstsq linalg_inv_ex
        """,
        "widest": "stack cat index_copy",
    },
}
POLICIES: Mapping[str, Mapping[str, str]] = {
    device: {name: policy for policy, names in lists.items() for name in names.split()}
    for device, lists in _LISTS.items()
}
_KEY = "AutocastIPU"
_OWN, _CPU, _CUDA = (
    torch._C.DispatchKeySet(torch._C._dispatch_key_parse(key)) for key in (_KEY, "AutocastCPU", "AutocastCUDA")
)


# --- a region that the caller asks for -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """Autocast around forward and loss, as on `device`."""

    device: str
    dtype: torch.dtype

    @property
    def description(self) -> str:
        """Device and dtype, as they can be written."""
        return f"{self.device}:{str(self.dtype).removeprefix('torch.')}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Do what `torch.autocast` does, which refuses where there is no GPU."""
        before = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_enabled(self.device, True)
        torch.set_autocast_dtype(self.device, self.dtype)
        torch.set_autocast_cache_enabled(True)
        torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            torch.set_autocast_enabled(self.device, before[0])
            torch.set_autocast_dtype(self.device, before[1])
            torch.set_autocast_cache_enabled(cached)


def region_of(value: AutocastLike, lives_on: str) -> Region | None:
    """Return the region that `value` names: a dtype, or `DEVICE:DTYPE`; of a model that lives on `lives_on`.

    A model on meta is taken to live on the CPU. Raise UserError for what is no such dtype or device.
    """
    if value is None:
        return None
    device, colon, written = str(value).rpartition(":")
    dtype = as_dtype(written if isinstance(value, str) else value, "autocast")
    if dtype not in DTYPES:
        raise UserError(f"autocast is {value!r}; autocast goes down to bfloat16 or float16")
    device = device if colon else "cpu" if lives_on == "meta" else lives_on
    if device not in MODELLED:
        raise UserError(
            f"autocast is {value!r} for the device {device!r}; it is modelled as on a CPU or on CUDA: "
            f"write cpu:{written.removeprefix('torch.')} or cuda:{written.removeprefix('torch.')}"
        )
    return Region(device, dtype)


# --- one run -------------------------------------------------------------------------------------------------------


class Autocast:
    """The casts of one capture. `device`: the one whose autocast is on for the function that runs, or None."""

    def __init__(self, lives_on: str | None, is_real: bool = False) -> None:
        """Take the model to live on `lives_on` (None: on meta; then it goes by whichever autocast is on).

        `is_real`: torch makes the casts, but for those of operations that are booked whole.
        """
        self.lives_on = lives_on
        self.device: str | None = None
        self.remarks: dict[str, None] = {}  # what was taken for granted
        self._is_real = is_real
        # By address, with what was cast: its gradient's node in the cast's graph holds it all the same.
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Autocast:
        global _running
        stack = self._stack
        stack.callback(_put_back, _running, torch.is_autocast_cache_enabled(), _nesting(), _states())
        _running = self
        _replace(stack, torch, "clear_autocast_cache", self._cleared)
        if not self._is_real and self.lives_on in (None, "cuda") and not torch.cuda.is_available():
            # torch.autocast("cuda") asks, and is off where there is no GPU.
            _replace(stack, torch.cuda.amp.common, "amp_definitely_not_available", lambda _: False)
            _replace(stack, torch.cuda, "is_bf16_supported", _supported)
        return self

    def __exit__(self, *_: object) -> None:
        self._casts.clear()
        self._stack.close()

    def _cleared(self, original: Callable[[], None]) -> None:
        """Forget the casts: the outermost autocast is left."""
        self._casts.clear()
        original()

    def is_unmodelled(self) -> bool:
        """Whether autocast is on for a device that a model may live on and that is not modelled; note which."""
        device = self.lives_on
        if self._is_real or device in MODELLED or self.device is not None:
            return False
        if device is not None and not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return False
        self.remarks[UNMODELLED.format(device or "another device")] = None
        return True

    @contextlib.contextmanager
    def as_it_is_now(self) -> Iterator[None]:
        """Run a function with the casts that torch's switches ask for at this moment."""
        before = self.device
        choices = MODELLED if self.lives_on is None else (self.lives_on,) if self.lives_on in MODELLED else ()
        self.device = next((device for device in choices if torch.is_autocast_enabled(device)), None)
        self._switch()
        try:
            yield
        finally:
            self.device = before
            self._switch()

    @contextlib.contextmanager
    def around_scripts(
        self, scripts: Sequence[nn.Module], casting: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[None]:
        """Hold `casting` while a scripted module runs on meta: what it calls is no function that a mode sees."""
        if self._is_real or not scripts:
            yield
            return
        opened: list[tuple[nn.Module, AbstractContextManager[None]]] = []

        def enter(module: nn.Module, _: Any) -> None:
            if isinstance(module, torch.jit.ScriptModule) and torch._C._is_any_autocast_enabled():
                self.remarks[SCRIPTED] = None
                if not torch.is_grad_enabled():  # TorchScript's own backward takes the tensors as they were before
                    opened.append((module, casting()))
                    opened[-1][1].__enter__()

        def leave(module: nn.Module, *_: Any) -> None:
            if opened and opened[-1][0] is module:
                opened.pop()[1].__exit__(None, None, None)

        handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _switch(self) -> None:
        is_on = self.device is not None and not self._is_real
        if is_on:
            _register()
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, is_on)
        torch._C._dispatch_tls_set_dispatch_key_excluded(_KEY, not is_on)

    # --- casts ---------------------------------------------------------------------------------------------------

    @property
    def lower(self) -> torch.dtype:
        assert self.device is not None
        return torch.get_autocast_dtype(self.device)

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Return a tensor, or a list of them, in `dtype`; whatever else it is, as it is."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.cast(item, dtype) for item in value)
        if not _is_eligible(value) or value.dtype == dtype:
            return value
        is_kept = (
            dtype == self.lower
            and value.dtype == torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
            and not torch.is_inference_mode_enabled()
        )
        if not is_kept:
            return value.to(dtype)
        known = self._casts.get(value._cdata)
        if known is not None and known[1].dtype == dtype:
            return known[1]
        with torch.enable_grad():  # what is kept serves under no_grad and after it
            made = value.to(dtype)
        self._casts[value._cdata] = (value, made)
        return made

    def lowered(self, *tensors: torch.Tensor | None) -> tuple[Any, ...]:
        """Return tensors as functions of the lower precision get them, such as attention and `linear`."""
        return tensors if self.device is None else tuple(self.cast(tensor, self.lower) for tensor in tensors)

    def recurrent(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of an LSTM, GRU or RNN layer (input, sizes where packed, states, weights, settings).

        cuDNN's are cast to float16, whatever autocast's dtype (AutocastRNN.cpp), and nothing of it is kept. On a CPU an
        LSTM is one kernel that all is cast for; where it is packed or has projections, and for GRU and RNN, it is
        products alone that are cast, and the state keeps its dtype.
        """
        if self.device is None:
            return args
        is_packed = isinstance(args[1], torch.Tensor) and isinstance(args[2], (torch.Tensor, list, tuple))
        is_packed &= name == "lstm" or isinstance(args[2], torch.Tensor)
        x, *sizes = args[: 1 + is_packed]
        hx, params, *settings = args[1 + is_packed :]
        if self.device == "cuda":
            half = [item.to(torch.float16) if _is_eligible(item) else item for item in params]
            return (self.cast(x, torch.float16), *sizes, self.cast(hx, torch.float16), half, *settings)
        if name == "lstm" and not is_packed and hx[0].shape[-1] == hx[1].shape[-1]:
            hx = self.cast(hx, self.lower)
        return (self.cast(x, self.lower), *sizes, hx, self.cast(params, self.lower), *settings)


def shielded() -> Any:
    """Return a context in which nothing is cast: what computes an operation's metadata or values is no operation."""
    return torch._C._ExcludeDispatchKeyGuard(_OWN | _CPU | _CUDA)


def _is_eligible(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


# --- the key -------------------------------------------------------------------------------------------------------

_running: Autocast | None = None  # of the capture that runs: there is one at a time
_libraries: list[torch.library.Library] = []


def _register() -> None:
    """Give the key a kernel for each listed operation, once: they run where a capture has switched the key on."""
    if _libraries:
        return
    listed = dict.fromkeys(name for policies in POLICIES.values() for name in policies)
    named = {name if "." in name else f"{name}.default": name for name in listed}
    made: Any = torch.library.Library
    others, own = made("_", "IMPL"), made("aten", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, _KEY)
    for op, name in overloads(named).items():
        rules = {device: _RULES[policies[name]] for device, policies in POLICIES.items() if name in policies}
        own.impl(name, _kernel(op, rules), _KEY)
    _libraries.extend((others, own))


Rule = Callable[[Autocast, Any, tuple[Any, ...], dict[str, Any]], Any]


def _kernel(op: Any, rules: Mapping[str, Rule]) -> Callable[..., Any]:
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        casts = _running
        rule = rules.get(casts.device or "") if casts is not None else None
        with torch._C.DisableTorchFunction():
            if casts is None or rule is None:
                if is_composite:
                    return op.decompose(*args, **kwargs)  # with the key on: what is inside may be listed
                with torch._C._ExcludeDispatchKeyGuard(_OWN):
                    return op(*args, **kwargs)
            with torch._C._ExcludeDispatchKeyGuard(_OWN):
                return rule(casts, op, args, kwargs)

    return kernel


def _cast_all(casts: Autocast, dtype: torch.dtype, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # The last first: so the compiler of torch's Linux builds has it, and with it the order in backward.
    given = {name: casts.cast(kwargs[name], dtype) for name in reversed(kwargs)}
    return op(*[casts.cast(value, dtype) for value in reversed(args)][::-1], **given)


def _lower(casts: Autocast, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _cast_all(casts, casts.lower, op, args, kwargs)


def _float32(casts: Autocast, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _cast_all(casts, torch.float32, op, args, kwargs)


def _float32_result(casts: Autocast, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = [argument.name for argument in op._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    if given.get("dtype") is None and _is_eligible(args[0]):
        given["dtype"] = torch.float32
    return op(**given)


_WITH_DTYPE = {"Scalar": "ScalarOpt_dtype", "ScalarOpt_dim": "ScalarOpt_dim_dtype"}


def _float32_overload(casts: Autocast, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = [argument.name for argument in op._schema.arguments]
    defaults = {a.name: a.default_value for a in op._schema.arguments if a.has_default_value()}
    given = defaults | dict(zip(names, args, strict=False)) | kwargs
    dtype = torch.float32 if _is_eligible(args[0]) else args[0].dtype
    return getattr(torch.ops.aten.norm, _WITH_DTYPE[op._overloadname])(**given, dtype=dtype)


def _widest(casts: Autocast, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    widest = casts.lower
    for value in (*args, *kwargs.values()):
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if not _is_eligible(tensor):
                continue
            if tensor.dtype == torch.float32:
                widest = torch.float32
            elif widest != torch.float32 and tensor.dtype != casts.lower:
                raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")  # as torch says it
    return _cast_all(casts, widest, op, args, kwargs)


def _refused(casts: Autocast, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise RuntimeError(
        f"{op._schema.name.removeprefix('aten::')} is unsafe to autocast on CUDA, and torch refuses it there: "
        "take binary_cross_entropy_with_logits of what goes into the sigmoid"
    )


_RULES: Mapping[str, Rule] = {
    "lower": _lower,
    "float32": _float32,
    "float32 result": _float32_result,
    "float32 overload": _float32_overload,
    "widest": _widest,
    "refused": _refused,
}

# --- torch's switches ----------------------------------------------------------------------------------------------


def _replace(stack: contextlib.ExitStack, holder: Any, name: str, function: Callable[..., Any]) -> None:
    """Put `function`, which gets the original as its argument, in the place of a function of torch's for a while."""
    original = getattr(holder, name)
    setattr(holder, name, lambda *_, **__: function(original))
    stack.callback(setattr, holder, name, original)


def _supported(original: Callable[[], bool]) -> bool:
    """Answer torch.autocast, and it alone, that a GPU takes bfloat16."""
    return sys._getframe(2).f_globals.get("__name__") == "torch.amp.autocast_mode" or original()


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _states() -> dict[str, tuple[bool, torch.dtype]]:
    return {device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in MODELLED}


def _put_back(
    running: Autocast | None, cached: bool, nesting: int, states: Mapping[str, tuple[bool, torch.dtype]]
) -> None:
    """Put back what a forward that enters autocast and never leaves it has changed."""
    global _running
    _running = running
    torch.set_autocast_cache_enabled(cached)
    while _nesting() > nesting:
        torch.autocast_decrement_nesting()
    for device, (is_on, dtype) in states.items():
        torch.set_autocast_enabled(device, is_on)
        torch.set_autocast_dtype(device, dtype)
