"""Operations that are booked whole, under one name whatever kernels the device would choose for them.

Attention, dropout, LSTM, GRU and RNN layers, one_hot: torch takes them apart in another way on each device. On meta
none of their kernels runs; what comes out follows from the sizes. Each has a backward that is one operation as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from torchledger.capture.known import fits
from torchledger.capture.recorder import Recorder
from torchledger.inputs import tensors_in
from torchledger.record import TensorRef

Given = torch.Tensor | Sequence[torch.Tensor] | None
Run = Callable[..., Any]  # takes the flat tensors; returns a tensor or a tuple of them
Kept = Callable[[torch.Tensor], dict[str, torch.Tensor]]
# Takes what the backward takes, the gradients that come in by output, and which of the inputs want one; returns theirs.
Again = Callable[[Recorder, list[torch.Tensor], Sequence[torch.Tensor | None], Sequence[bool]], Sequence[Any]]

TWICE = "attention and recurrent layers that one may go back through twice do so as torch writes them out, on their own"


@dataclass(frozen=True)
class Whole:
    """One operation: its name, where its tensors stand by argument, its other arguments.

    `run` computes it from the tensors in their order, for real or on meta. `kept` makes, of the first tensor, what its
    backward takes besides the gradients, by name; None: all that the operation was given. `again` goes back in
    operations that one can go back through as well; None: one cannot.
    """

    name: str
    places: dict[str, TensorRef | tuple[TensorRef, ...]]
    arguments: dict[str, object]
    run: Run
    in_place: bool = False
    kept: Kept | None = None
    again: Again | None = None

    @property
    def stated(self) -> dict[str, object]:
        return {**self.places, **self.arguments}


def book(
    recorder: Recorder,
    name: str,
    tensors: dict[str, Given],
    arguments: dict[str, object],
    run: Run,
    in_place: bool = False,
    kept: Kept | None = None,
    again: Again | None = None,
) -> Any:
    """Run and book an operation; where gradients are wanted its backward will be booked whole too."""
    flat: list[torch.Tensor] = []
    places: dict[str, TensorRef | tuple[TensorRef, ...]] = {}
    for key, value in tensors.items():
        if isinstance(value, torch.Tensor):
            places[key] = TensorRef(len(flat))
            flat.append(recorder.stand_in(value))
        elif value is not None:
            places[key] = tuple(TensorRef(len(flat) + place) for place in range(len(value)))
            flat += [recorder.stand_in(item) for item in value]
    whole = Whole(name, places, arguments, run, in_place, kept, again)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in flat):
        return _Differentiable.apply(recorder, whole, *flat)  # type: ignore[no-untyped-call]
    made = recorder.whole(name, flat, whole.stated, lambda: run(*flat))
    return made[0] if len(made) == 1 else tuple(made)


class _Differentiable(torch.autograd.Function):
    """One node of autograd's graph for one whole operation."""

    @staticmethod
    def forward(ctx: Any, recorder: Recorder, whole: Whole, *flat: torch.Tensor) -> Any:
        ctx.recorder, ctx.whole = recorder, whole
        ctx.set_materialize_grads(False)
        if recorder.is_real:
            # The real kernels' own graph: what they keep is kept, whatever a checkpoint around it forgets, and their
            # backward can be run.
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
                leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in flat]
                inner: list[torch.Tensor] = []  # with their graph

                def run() -> Any:
                    inner.extend(tensors_in(whole.run(*leaves)))
                    with torch.no_grad():
                        return flat[0].copy_(inner[0]) if whole.in_place else inner

                made = recorder.whole(whole.name, list(flat), whole.stated, run)
            ctx.graph = (leaves, inner)
            made = [tensor if tensor is flat[0] else tensor.detach() for tensor in made]
        else:
            made = recorder.whole(whole.name, list(flat), whole.stated, lambda: whole.run(*flat))
            ctx.graph = None
        with recorder.paused():
            kept = whole.kept(flat[0]) if whole.kept is not None else None
        ctx.names = None if kept is None else tuple(kept)
        saved = (*flat, *made) if kept is None else kept.values()
        ctx.save_for_backward(*saved, recorder.keeps(flat))
        ctx.likes = [(tensor.size(), _dense_strides(tensor), tensor.dtype, tensor.device) for tensor in flat]
        if whole.in_place:
            ctx.mark_dirty(flat[0])
            return flat[0]
        return made[0] if len(made) == 1 else tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        recorder, whole, likes = ctx.recorder, ctx.whole, ctx.likes
        wanted = ctx.needs_input_grad[2:]
        incoming = [gradient for gradient in gradients if gradient is not None]
        if not incoming:
            return (None, None, *(None for _ in likes))
        if ctx.names is None:
            given, stated = list(ctx.saved_tensors[: len(likes)]), whole.stated
        else:
            given = list(ctx.saved_tensors[:-1])
            stated = {**{name: TensorRef(place) for place, name in enumerate(ctx.names)}, **whole.arguments}
        if torch.is_grad_enabled() and whole.again is not None:  # create_graph: this may be gone back through
            return (None, None, *whole.again(recorder, given, gradients, wanted))
        names = [f"grad_{place}" if place else "grad_out" for place, g in enumerate(gradients) if g is not None]
        references = {name: TensorRef(len(given) + place) for place, name in enumerate(names)}
        arguments = {**stated, **references, "output_mask": tuple(wanted)}

        def run() -> Any:
            chosen = [like for like, wants in zip(likes, wanted, strict=True) if wants]
            if ctx.graph is None:
                return tuple(torch.empty_strided(*like[:2], dtype=like[2], device=like[3]) for like in chosen)
            leaves, made = ctx.graph
            pairs = [(m, g) for m, g in zip(made, gradients, strict=True) if g is not None]
            inputs = [leaf for leaf, wants in zip(leaves, wanted, strict=True) if wants]
            found = torch.autograd.grad([m for m, _ in pairs], inputs, [g for _, g in pairs], retain_graph=True)
            return tuple(_laid(gradient, like[1]) for gradient, like in zip(found, chosen, strict=True))

        with torch.no_grad():
            made = recorder.whole(f"{whole.name.removesuffix('_')}_backward", [*given, *incoming], arguments, run)
        if torch.is_grad_enabled():
            error = torch._C._functions.DelayedError(f"an analysis goes back through {whole.name} once", len(made))
            made = tensors_in(error(*(tensor.requires_grad_() for tensor in made)))
        found = iter(made)
        return (None, None, *(next(found) if wants else None for wants in wanted))


def _written_out(run: Run) -> Again:
    """Return what goes back through `run`, which torch takes apart, forward's part of it unbooked."""

    def again(
        recorder: Recorder,
        given: list[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        wanted: Sequence[bool],
    ) -> Sequence[Any]:
        if TWICE not in recorder.record.assumptions:
            recorder.record.assumptions.append(TWICE)
        with recorder.silent(), torch._C.DisableTorchFunction(), _unfused():
            # One by one: what hangs together further back, or is one tensor, does so there.
            flat = [torch.ops.aten.alias(tensor) for tensor in given[: len(wanted)]]
            made = tensors_in(run(*flat))
        pairs = [(m, g) for m, g in zip(made, gradients, strict=True) if g is not None]
        inputs = [tensor for tensor, wants in zip(flat, wanted, strict=True) if wants]
        found = iter(torch.autograd.grad([m for m, _ in pairs], inputs, [g for _, g in pairs], create_graph=True))
        return [next(found) if wants else None for wants in wanted]

    return again


@contextmanager
def _unfused() -> Iterator[None]:
    """Keep torch from kernels that one cannot go back through twice."""
    fused = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(fused)


def _dense_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return how a gradient lies: without gaps, its dimensions in the order that the tensor's have in memory."""
    if tensor.is_contiguous():
        return tensor.stride()
    step, strides = 1, [0] * tensor.dim()
    for dim in sorted(range(tensor.dim()), key=lambda dim: (tensor.stride(dim), -dim)):
        strides[dim] = step
        step *= max(tensor.size(dim), 1)
    return tuple(strides)


def _laid(tensor: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """Return the values of a real tensor laid out by `stride`: devices differ in that, and what follows with them."""
    if tensor.stride() == stride:
        return tensor
    return torch.empty_strided(tensor.size(), stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


# --- attention -----------------------------------------------------------------------------------------------------


def attention(
    recorder: Recorder,
    func: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """Book `scaled_dot_product_attention`."""
    tensors: dict[str, Given] = {"query": query, "key": key, "value": value, "attn_mask": attn_mask}
    given = {"dropout_p": dropout_p, "is_causal": is_causal, **options}
    arguments = {name: plain(number) for name, number in given.items()}
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        arguments["attn_mask_trains"] = True  # devices choose their kernel by that

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        torchs_own = functools.partial(func, q, k, v, mask, dropout_p, is_causal, **options)
        if not q.is_meta:
            made: torch.Tensor = torchs_own()
            return _laid(made, _fused_layout(q, v, lambda: made).stride())
        fits = _attention_fits(q, k, v, mask, is_causal, bool(options.get("enable_gqa")))
        return _fused_layout(q, v, None if fits else torchs_own)

    def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        return func(q, k, v, mask, dropout_p, is_causal, **options)

    again = _written_out(written_out)
    return book(recorder, "scaled_dot_product_attention", tensors, arguments, run, again=again)


def flex_attention(
    recorder: Recorder,
    func: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *others: Any,
    **options: Any,
) -> Any:
    """Book `flex_attention`, which returns the sums and the largest scores of its rows besides; all of the square."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        if not q.is_meta:
            with _disable_current_modes():  # it goes by no mode that does not know it
                return func(q, k, v, *others, **options)
        rows = [q.new_empty(q.shape[:-1], dtype=torch.float32) for _ in range(2)]
        return _fused_layout(q, v, lambda: q.new_empty((*q.shape[:-1], v.shape[-1]))), *rows

    if SCORES not in recorder.record.assumptions:
        recorder.record.assumptions.append(SCORES)
    tensors: dict[str, Given] = {"query": query, "key": key, "value": value}
    return book(recorder, "higher_order::flex_attention", tensors, {}, run)


SCORES = "what flex_attention's score_mod and mask_mod compute for each score is not counted"


def _attention_fits(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, gqa: bool
) -> bool:
    """Whether the shapes are those that attention takes: heads of keys and values may divide the query's (`gqa`)."""
    q, k, v = query.shape, key.shape, value.shape
    if len({query.dtype, key.dtype, value.dtype}) > 1 or not len(q) == len(k) == len(v) >= 2:
        return False
    if q[-1] != k[-1] or k[:-1] != v[:-1] or (mask is not None and is_causal):
        return False
    same_batch = q[:-3] == k[:-3] and k[-3] and q[-3] % k[-3] == 0 if gqa and len(q) > 3 else q[:-2] == k[:-2]
    if mask is None or not same_batch:
        return bool(same_batch)
    scores = (*q[:-1], k[-2])
    sizes = zip(reversed(mask.shape), reversed(scores), strict=False)
    return mask.dtype in (torch.bool, query.dtype) and mask.dim() <= len(scores) and all(a in (1, b) for a, b in sizes)


def _fused_layout(query: torch.Tensor, value: torch.Tensor, run: Callable[[], torch.Tensor] | None) -> torch.Tensor:
    """Return what the fused kernels return: laid out as the query is, so that joining the heads moves nothing.

    `run` runs torch's own function, for its error or for a case that is out of the ordinary.
    """
    shape = (*query.shape[:-1], value.shape[-1]) if run is None else run().shape
    if shape == query.shape:
        return torch.empty_like(query)
    made = query.new_empty((*shape[:-3], shape[-2], shape[-3], shape[-1])) if len(shape) > 2 else query.new_empty(shape)
    return made.transpose(-3, -2) if len(shape) > 2 else made


# --- dropout -------------------------------------------------------------------------------------------------------


def dropout(name: str) -> Callable[..., Any]:
    """Return what books `F.dropout` (`name` dropout) or those that drop whole channels (feature_dropout)."""

    def function(
        recorder: Recorder,
        func: Callable[..., Any],
        input: torch.Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Any:
        def run(x: torch.Tensor, in_place: bool = False) -> torch.Tensor:
            made: torch.Tensor = func(x, p, training, in_place)
            return made

        return _dropout(recorder, name, run, input, p, training, inplace)

    return function


def dropout_kernel(name: str, in_place: bool) -> Callable[..., Any]:
    """Return what books `torch.dropout` and its kin."""

    def function(recorder: Recorder, func: Callable[..., Any], input: torch.Tensor, p: float, train: bool) -> Any:
        plain_form = getattr(torch, name)

        def run(x: torch.Tensor, writes: bool = False) -> torch.Tensor:
            made: torch.Tensor = func(x, p, train) if writes == in_place else plain_form(x, p, train)
            return made

        return _dropout(recorder, name, run, input, p, train, in_place)

    return function


def _dropout(
    recorder: Recorder, name: str, run: Run, input: torch.Tensor, p: float, training: bool, in_place: bool
) -> Any:
    if not training or not 0 < p <= 1 or not input.numel():
        return run(input, in_place)
    differentiates = torch.is_grad_enabled() and input.requires_grad

    def dropped(x: torch.Tensor) -> torch.Tensor:
        if x.is_meta and x.is_floating_point() and (name == "dropout" or differentiates):
            return x if in_place else torch.empty_like(x)
        return run(x, in_place and not differentiates)  # type: ignore[no-any-return]

    def again(
        recorder: Recorder,
        given: list[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        wanted: Sequence[bool],
    ) -> Sequence[Any]:
        (gradient,), (mask,) = gradients, given
        if gradient is None:
            return [None]
        scale = 1 / (1 - p) if p < 1 else 0.0
        mask = mask.reshape(*mask.shape, *(1,) * (gradient.dim() - mask.dim()))
        return [torch.ops.aten.native_dropout_backward(gradient, mask, scale)]

    booked = f"{name}_" if in_place else name
    return book(recorder, booked, {"input": input}, {"p": plain(p)}, dropped, in_place, _mask[name], again)


# A bool for each element that may go, or for each channel.
_mask: dict[str, Kept] = {
    "dropout": lambda x: {"mask": torch.empty_like(x, dtype=torch.bool)},
    "feature_dropout": lambda x: {"mask": x.new_empty(x.shape[:2], dtype=torch.bool)},
}


# --- mish ----------------------------------------------------------------------------------------------------------


def mish(recorder: Recorder, func: Callable[..., Any], input: torch.Tensor, inplace: bool = False) -> Any:
    """Book `mish`, whose backward comes apart on meta and is one kernel everywhere else."""
    if inplace:
        return func(input, inplace)
    return book(recorder, "mish", {"self": input}, {}, func, kept=lambda x: {"self": x})


# --- recurrent layers ----------------------------------------------------------------------------------------------

_SETTINGS = ("has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")


def recurrent(name: str) -> Callable[..., Any]:
    """Return what books `torch._VF.lstm`, `gru`, `rnn_tanh` or `rnn_relu`, of plain and of packed sequences."""

    def function(recorder: Recorder, func: Callable[..., Any], *args: Any) -> Any:
        is_packed = isinstance(args[2], (list, tuple)) if name == "lstm" else isinstance(args[2], torch.Tensor)
        is_packed = isinstance(args[1], torch.Tensor) and is_packed
        tensors: dict[str, Given] = {"data": args[0], "batch_sizes": args[1]} if is_packed else {"input": args[0]}
        hx, params, *settings = args[len(tensors) :]
        tensors |= {"hx": hx, "params": params}
        stated = dict(zip(_SETTINGS, settings, strict=False))
        arguments = {key: plain(value) for key, value in stated.items()}
        several = not isinstance(hx, torch.Tensor)
        states = len(hx) if several else 1
        packed = int(is_packed)

        # These live as long as the graph: they may hold no tensor.
        def written_out(x: torch.Tensor, *flat: torch.Tensor) -> Any:
            sizes, rest = flat[:packed], flat[packed:]
            before = list(rest[:states]) if several else rest[0]
            return func(x, *sizes, before, list(rest[states:]), *settings)

        def run(x: torch.Tensor, *flat: torch.Tensor) -> Any:
            if not x.is_meta:
                return written_out(x, *flat)
            before = flat[packed:][:states]
            return _recurrent_outputs(name, x, before, bool(stated["bidirectional"]), stated.get("batch_first"))

        again = None if is_packed else _written_out(written_out)  # goes by the sizes of its batches in C++
        return book(recorder, name, tensors, arguments, run, again=again)

    return function


def _recurrent_outputs(
    name: str, x: torch.Tensor, states: Sequence[torch.Tensor], bidirectional: bool, batch_first: Any
) -> tuple[torch.Tensor, ...]:
    """Return the last layer's hidden state at every step, then the states at the end."""
    width = states[0].shape[-1] * (1 + bidirectional)
    dtypes = _recurrent_dtypes(name, x, states)
    if x.dim() < 3:  # packed: a row for each step of each sample
        steps = x.new_empty((x.shape[0], width), dtype=dtypes[0])
    elif batch_first:  # worked on with the steps in front, on every device
        steps = x.new_empty((x.shape[1], x.shape[0], width), dtype=dtypes[0]).transpose(0, 1)
    else:
        steps = x.new_empty((*x.shape[:2], width), dtype=dtypes[0])
    return (steps, *(x.new_empty(state.shape, dtype=dtype) for state, dtype in zip(states, dtypes, strict=True)))


def _recurrent_dtypes(name: str, x: torch.Tensor, states: Sequence[torch.Tensor]) -> list[torch.dtype]:
    """Return the dtypes of the states at the end, which differ from the input's under autocast on a CPU alone.

    Products come out in the input's dtype. An RNN's state is such a sum of products; a GRU's is mixed with the state
    before, an LSTM's cell too, and its hidden state is made of the cell, but for a projection, which is a product.
    """
    mixed = torch.promote_types(x.dtype, states[-1].dtype)
    if name == "lstm":
        is_projected = states[0].shape[-1] != states[1].shape[-1]
        return [x.dtype if is_projected else mixed, mixed]
    return [mixed if name == "gru" else x.dtype]


def pad_packed_sequence(
    recorder: Recorder,
    func: Callable[..., Any],
    data: torch.Tensor,
    batch_sizes: torch.Tensor,
    batch_first: bool,
    padding_value: float,
    total_length: int,
) -> Any:
    """Book `_pad_packed_sequence`, which goes through the batch sizes in C++; return rows and lengths."""
    counts = recorder.values_of(batch_sizes)
    if counts is None:
        return func(data, batch_sizes, batch_first, padding_value, total_length)  # fails, and says why
    with _disable_current_modes():
        samples, steps = int(counts[0]), max(counts.numel(), total_length)
        lengths = (counts[:, None] > torch.arange(samples)[None, :]).sum(0)

    def run(rows: torch.Tensor) -> torch.Tensor:
        if not rows.is_meta:
            real: torch.Tensor = func(rows, counts, batch_first, padding_value, total_length)[0]
            return real
        made = rows.new_empty((steps, samples, *rows.shape[1:]))
        return made.transpose(0, 1) if batch_first else made

    arguments: dict[str, object] = {"batch_first": batch_first, "total_length": total_length}
    return book(recorder, "_pad_packed_sequence", {"data": data}, arguments, run, kept=lambda _: {}), lengths


# --- one_hot -------------------------------------------------------------------------------------------------------


def one_hot(recorder: Recorder, func: Callable[..., Any], tensor: torch.Tensor, num_classes: int = -1) -> Any:
    """Book `one_hot`, whose classes may have to be counted."""
    tensor = recorder.stand_in(tensor)
    if not tensor.is_meta:
        return book(recorder, "one_hot", {"self": tensor}, {"num_classes": num_classes}, lambda x: func(x, num_classes))
    value = recorder.values_of(tensor, relies=num_classes < 0)
    if num_classes < 0:
        if value is None:
            return func(tensor, num_classes)  # fails, and says why
        with _disable_current_modes():
            num_classes = int(value.max()) + 1 if value.numel() else 0

    def run(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty((*x.shape, num_classes), dtype=torch.int64)

    made: torch.Tensor = book(recorder, "one_hot", {"self": tensor}, {"num_classes": num_classes}, run)
    if value is not None and made.numel() and fits(made):
        with _disable_current_modes():
            recorder.known.put(made, func(value, num_classes), recorder.known.reason([tensor]))
    return made


def plain(value: Any) -> object:
    """Return a number as Python has it: numpy's and a tensor's own are no JSON."""
    return value if value is None or isinstance(value, (bool, int)) else float(value)
