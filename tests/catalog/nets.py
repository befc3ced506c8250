"""Small modules whose forward does what counters stumble over; `modules.py` lists them with what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """Modules and parameters by name, and a forward that takes them: `Net(lambda net, x: net.fc(x), fc=...)`."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


# --- attention -----------------------------------------------------------------------------------------------------


def heads(x: Tensor, count: int) -> Tensor:
    """(N, L, heads width) -> (N, heads, L, width)"""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(net: Any, x: Tensor, **options: Any) -> Tensor:
    query, key, value = (heads(part, 2) for part in net.qkv(x).chunk(3, -1))
    return F.scaled_dot_product_attention(query, key, value, **options)


def attend_masked(net: Any, x: Tensor) -> Tensor:
    return attend(net, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril())


def attend_biased(net: Any, x: Tensor) -> Tensor:
    return attend(net, x, attn_mask=net.bias)


def attend_dropping(net: Any, x: Tensor) -> Tensor:
    return attend(net, x, dropout_p=0.1 if net.training else 0.0)


def attend_grouped(net: Any, x: Tensor) -> Tensor:
    query, key, value = heads(net.q(x), 4), heads(net.k(x), 2), heads(net.v(x), 2)
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def attend_across(net: Any, x: Tensor, memory: Tensor) -> Tensor:
    query, key, value = heads(net.q(x), 2), heads(net.k(memory), 2), heads(net.v(memory), 2)
    return F.scaled_dot_product_attention(query, key, value)


def attend_by_hand(net: Any, x: Tensor) -> Tensor:
    query, key, value = (heads(part, 2) for part in net.qkv(x).chunk(3, -1))
    scores = query @ key.transpose(-2, -1) / 2
    return scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1) @ value


def attend_flexibly(net: Any, x: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*(heads(part, 2) for part in net.qkv(x).chunk(3, -1)))


def attend_padded(net: Any, x: Tensor, padding: Tensor) -> Tensor:
    return net.encoder(x, src_key_padding_mask=padding)


# --- recurrent -----------------------------------------------------------------------------------------------------


def packed(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(net.rnn(rows)[0], batch_first=True)[0]


def unrolled_lstm(net: Any, x: Tensor) -> Tensor:
    state = None
    for step in x.unbind(1):
        state = net.cell(step, state)
    return state[0]


# --- values --------------------------------------------------------------------------------------------------------


def made_on_cpu(net: Any, x: Tensor) -> Tensor:
    """Tensors that name the CPU, or no device at all."""
    places = torch.arange(x.shape[1], device="cpu")
    scale = torch.tensor([1.0] * x.shape[-1])
    return net.fc(x * scale + net.places(places) + torch.zeros(x.shape))


def while_below(net: Any, x: Tensor) -> Tensor:
    """Three rounds: a counter is a tensor, and the loop asks for its value."""
    count = torch.zeros((), dtype=torch.long)
    while count < 3:
        x = net.fc(x)
        count += 1
    return x


# --- mixtures of experts -------------------------------------------------------------------------------------------


def mixture(net: Any, x: Tensor) -> Tensor:
    """Each row goes to 2 of 4 experts; a loop over these picks the rows by where the choice fell on them."""
    rows = x.flatten(0, 1)
    weights, chosen = net.gate(rows).softmax(-1).topk(2)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(net.experts):
        row, place = torch.where(chosen == number)
        out.index_add_(0, row, expert(rows[row]) * weights[row, place, None])
    return out


def grouped_mixture(net: Any, x: Tensor) -> Tensor:
    """The same with rows sorted by expert and one grouped product."""
    rows = x.flatten(0, 1)
    weights, chosen = net.gate(rows).softmax(-1).topk(2)
    order = chosen.flatten().argsort()
    ends = torch.histc(chosen.flatten().float(), 4, 0, 3).cumsum(0).to(torch.int32)
    made = torch._grouped_mm(rows[order // 2], net.experts, offs=ends)
    return made * weights.flatten()[order, None]


# --- autograd ------------------------------------------------------------------------------------------------------


class OwnLinear(torch.autograd.Function):
    """A product with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight.t(), x.flatten(0, 1).t() @ gradient.flatten(0, 1)


def energy(net: Any, x: Tensor) -> Tensor:
    return net.fc(x).tanh().sum()


def force_by_autograd(net: Any, x: Tensor) -> Tensor:
    """The gradient of an energy, to be trained through: gradients inside of a forward, in every mode."""
    with torch.enable_grad():
        places = x.detach().requires_grad_()
        return torch.autograd.grad(energy(net, places), places, create_graph=True)[0]


def force_by_functorch(net: Any, x: Tensor) -> Tensor:
    return torch.func.grad(lambda places: energy(net, places))(x)


def ensemble(net: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda weight: F.linear(x, weight))(net.weights)


def checkpointed(net: Any, x: Tensor, use_reentrant: bool) -> Tensor:
    return checkpoint(net.block, net.fc(x), use_reentrant=use_reentrant)


def partly_without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.first(x)
    return net.second(x)


class Adapted(nn.Module):
    """A frozen linear layer and what adds to it by way of two numbers a row (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = frozen(nn.Linear(8, 8))
        self.down = nn.Linear(8, 2, bias=False)
        self.up = nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def biases_alone(*layers: nn.Linear) -> nn.Sequential:
    for layer in layers:
        layer.weight.requires_grad_(False)
    return nn.Sequential(*layers)


# --- how modules are called ----------------------------------------------------------------------------------------


class Scripted(nn.Module):
    """What TorchScript can compile: a branch and a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.fc(x)
        if x.dim() == 3:
            x = torch.relu(x)
        return self.last(x)


class Attention(nn.Module):
    """Attention that TorchScript can compile, in 2 heads of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.size(0), x.size(1), 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Tagged(Tensor):
    """A tensor with a class of its own and nothing else."""


@dataclass
class Outputs:
    first: Tensor
    others: list[Tensor]


def in_a_dict(net: Any, x: Tensor) -> dict[str, Any]:
    return {"first": net.first(x), "others": [net.second(x)]}


def in_a_dataclass(net: Any, x: Tensor) -> Outputs:
    return Outputs(net.first(x), [net.second(x)])


def in_a_tuple(net: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    return net.first(x), (net.second(x),)


def by_keyword(net: Any, *, x: Tensor, scale: Tensor | None = None) -> Tensor:
    y: Tensor = net.fc(input=x)
    return y if scale is None else y * scale


def with_other_weights(net: Any, x: Tensor) -> Tensor:
    return torch.func.functional_call(net.fc, {"weight": net.weight, "bias": net.bias}, (x,))


def in_place(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    y += 1
    y[:, 0] = 0
    y[..., 1].mul_(2)
    y.relu_()
    return net.second(y)


def views(net: Any, x: Tensor) -> Tensor:
    """Each part of x goes through the layer once, whichever way it is cut off."""
    first, *rest = x.chunk(5, 1)
    parts = [net.fc(first), *(net.fc(part.squeeze(1)).unsqueeze(1) for part in rest)]
    return torch.cat(parts, 1).permute(2, 0, 1).expand(6, 2, 5)


def hooked() -> nn.Module:
    """A layer whose hook multiplies what comes out of it."""
    net = Net(lambda net, x: net.fc(x), fc=nn.Linear(8, 6), weight=parameter(6, 4))
    net.fc.register_forward_hook(lambda module, args, output: output @ net.weight)
    return net


def auxiliary(net: Any, x: Tensor) -> Any:
    """A second head that runs in train mode alone."""
    return (net.first(x), net.second(x)) if net.training else net.first(x)


def tied(net: Any, ids: Tensor) -> Tensor:
    return F.linear(net.table(ids), net.table.weight)


def micro_batches(net: Any, x: Tensor) -> Tensor:
    """Two halves of a batch, whose gradients add up."""
    return sum(net.fc(half).square().mean() for half in x.split(1))


def hypernetwork(net: Any, z: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, net.fc(z).view(4, 3, 3, 3))


def unfolded(net: Any, x: Tensor) -> Tensor:
    """A convolution as the columns of all windows by one matrix."""
    return net.weight @ F.unfold(x, 3)


def spectral(net: Any, x: Tensor) -> Tensor:
    return net.second(torch.fft.irfft(torch.fft.rfft(net.first(x)) * net.filter, n=8))


def mean_of_weighted_bags(net: Any, ids: Tensor, weights: Tensor) -> Tensor:
    return net.fc(net.bag(ids, per_sample_weights=weights))
