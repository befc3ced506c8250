"""What hangs on a model is put back, whatever it is made of; what cannot be looked into is left alone."""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import FlopCounterMode

from torchledger import ForwardError, analyze, stat
from torchledger import capture as capturing
from torchledger.capture import holdings, modes, process
from torchledger.capture.interrupts import uninterrupted
from torchledger.capture.leaves import Leaves
from torchledger.capture.scopes import Scopes
from torchledger.capture.twins import Twins


class Held(nn.Module):
    """A model that holds `held` and runs `function(held, x)`."""

    def __init__(self, held: Any, function: Any) -> None:
        super().__init__()
        self.held, self.function = held, function
        self.spare = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.function(self.held, x)
        return x + 1


class Counter:
    """A plain object that can be called."""

    def __init__(self) -> None:
        self.n, self.w, self.cache = 0, torch.zeros(2), []

    def __call__(self, x: torch.Tensor) -> None:
        self.n += 1
        self.w = self.w + x.sum()
        self.cache.append(x)

    def state(self) -> Any:
        return self.n, self.w.tolist(), list(self.cache)


class Slotted:
    __slots__ = ("__own", "w")

    def __init__(self) -> None:
        self.w, self.__own = torch.zeros(2), 0

    def bump(self, x: torch.Tensor) -> None:
        self.w, self.__own = self.w + x.sum(), self.__own + 1

    def state(self) -> Any:
        return self.w.tolist(), self.__own


class Frozen(collections.OrderedDict):  # type: ignore[type-arg]
    """As transformers' ModelOutput: what would change it in bulk is forbidden."""

    def update(self, *_: Any, **__: Any) -> None:
        raise TypeError("no update")

    def __delitem__(self, key: str) -> None:
        raise TypeError("no del")


class Tagged(dict):  # type: ignore[type-arg]
    """A dict with an attribute of its own."""


def tagged() -> Tagged:
    made = Tagged(a=1)
    made.tag = torch.zeros(2)
    return made


def set_tag(held: Tagged, x: torch.Tensor) -> None:
    held.tag = held.tag + x.sum()
    held["b"] = x


counter = Counter()
CASES: dict[str, tuple[Any, Any, Any]] = {
    "callable object": (Counter(), lambda h, x: h(x), lambda h: h.state()),
    "bound method": (Counter().__call__, lambda h, x: h(x), lambda h: h.__self__.state()),
    "slots": (Slotted(), lambda h, x: h.bump(x), lambda h: h.state()),
    "array": (numpy.zeros(3), lambda h, x: h.__iadd__(1), lambda h: h.tolist()),
    "bytearray": (bytearray(b"ab"), lambda h, x: h.extend(b"c"), bytes),
    "frozen dict": (Frozen(a=torch.zeros(1)), lambda h, x: h.__setitem__("b", x), lambda h: [*h, h["a"].tolist()]),
    "tagged dict": (tagged(), set_tag, lambda h: (dict(h), h.tag.tolist())),
    "order of keys": ({"a": 1, "b": 2}, lambda h, x: h.__setitem__("a", h.pop("a")), list),
    "random": (random.Random(1), lambda h, x: h.random(), lambda h: h.getstate()),
    "numpy generator": (numpy.random.default_rng(1), lambda h, x: h.random(), lambda h: str(h.bit_generator.state)),
    "torch generator": (
        torch.Generator(),
        lambda h, x: torch.randn(2, generator=h, device="cpu"),
        lambda h: h.get_state().tolist(),
    ),
}


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_put_back(case: str, measured: bool) -> None:
    held, function, state = CASES[case]
    before = state(held)
    model = Held(held, function)
    _ = stat(model, (2,), measure=True) if measured else analyze(model, (2,))
    assert state(held) == before
    assert model.held is held


def test_objects_among_the_inputs() -> None:
    class Data:
        pass

    data = Data()
    data.x, data.log = torch.zeros(1, 4), []  # type: ignore[attr-defined]
    x = data.x  # type: ignore[attr-defined]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, given: Any) -> torch.Tensor:
            given.x = self.fc(given.x)
            given.log.append(given.x)
            return given.x

    assert analyze(Net(), data).totals()["macs"] == 16
    assert data.x is x and data.log == []  # type: ignore[attr-defined]


def test_tensors_of_closures_in_a_measured_run() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    generator = torch.Generator()
    state = generator.get_state()

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(3, generator=generator, device=generator.device if x.device.type == "cpu" else x.device)
            return F.batch_norm(x, mean, var, training=True) + noise

    stat(Net(), torch.randn(4, 3), measure=True)
    assert (mean.tolist(), var.tolist()) == ([0.0] * 3, [1.0] * 3)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net.eval(), torch.zeros(3, 4))])
@pytest.mark.parametrize("wrap", [nn.Sequential, lambda net: net])
def test_scripted_modules(measured: bool, make: Any, wrap: Any) -> None:
    model = wrap(make(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())))
    for training in (True, False):
        model.train(training)
        flags = [module.training for module in model.modules()]
        values = [(name, tensor.tolist()) for name, tensor in model.state_dict().items()]
        for mode in ("eval", "train"):
            stat(model, torch.randn(3, 4), mode=mode, measure=measured)  # type: ignore[arg-type]
            assert [module.training for module in model.modules()] == flags
            assert [(name, tensor.tolist()) for name, tensor in model.state_dict().items()] == values
    assert model(torch.randn(3, 4)).device.type == "cpu"


@pytest.mark.parametrize("mode", [FlopCounterMode(display=False), torch.device("cpu")])
def test_modes_that_forward_leaves_on_come_off(mode: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(9, 9))
    model.register_forward_pre_hook(lambda *_: (mode.__enter__(), None)[1])
    with pytest.raises(ForwardError, match="expects 9 features, got 4"):
        analyze(model, (4,))
    assert (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()) == (0, 0)
    assert torch.ones(2).device.type == "cpu"
    assert not torch_module._global_forward_hooks and not torch_module._global_forward_pre_hooks


def test_loggers_stay_registered() -> None:
    name = f"made in forward {random.random()}"
    analyze(Held(logging.getLogger("held"), lambda held, x: logging.getLogger(name)), (2,))
    assert name in logging.Logger.manager.loggerDict


class Vicious:
    """Raises whatever one asks of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hands off")


def dead() -> Any:
    target = Counter()
    return weakref.proxy(target)


@pytest.mark.parametrize("make", [Vicious, dead, type("Odd", (), {"__module__": None})])
def test_objects_that_cannot_be_looked_into(make: Any) -> None:
    model = Held(None, lambda held, x: None)
    model.__dict__["held"] = make()  # nn.Module itself would look at it
    assert analyze(model, (2,)).totals()["flops"] == 2


def test_plain_tensor_attributes_are_no_strangers() -> None:
    model = Held([torch.zeros(2), {"a": torch.zeros(2)}], lambda held, x: held[0] + held[1]["a"])
    assert analyze(model, (2,)).assumptions == []


def test_result_of_another_thread_is_an_assumption() -> None:
    with ThreadPoolExecutor(1) as pool:
        model = Held(pool, lambda held, x: x + held.submit(torch.add, x, x).result())
        assert any("unknown origin" in assumption for assumption in analyze(model, (2,)).assumptions)


def test_model_made_in_inference_mode_can_be_measured() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    assert stat(model, (4,), measure=True).record.measurement is not None


def test_many_items_of_a_module_list_are_found_in_one_walk() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(1, 1)) for _ in range(1500))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    import torchledger.capture.scopes as scopes

    walks = 0
    walk = scopes.walk

    def counted(model: nn.Module) -> Any:
        nonlocal walks
        walks += 1
        return walk(model)

    model = Net()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scopes, "walk", counted)
        assert analyze(model, (1,)).totals()["macs"] == 1500
    assert walks == 1


def test_two_threads_that_measure() -> None:
    stdout = sys.stdout
    threads = [threading.Thread(target=lambda: stat(nn.Linear(2, 2), (2,), measure=True)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is stdout
    assert torch.backends.mha.get_fastpath_enabled()


def test_interrupt_waits_until_all_is_back() -> None:
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("put back")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["put back"]


def test_interrupt_in_forward_puts_everything_back() -> None:
    def interrupt(held: Any, x: torch.Tensor) -> None:
        held.append(x)
        raise KeyboardInterrupt

    model = Held([1], interrupt)
    with pytest.raises(KeyboardInterrupt):
        analyze(model, (2,))
    assert model.held == [1] and model.training
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_slot_that_was_empty_is_emptied() -> None:
    held = object.__new__(Slotted)

    def fill(held: Any, x: torch.Tensor) -> None:
        held.w = x * 2

    analyze(Held([held], lambda held, x: fill(held[0], x)), (3,))
    assert not hasattr(held, "w")


@pytest.fixture
def hearing() -> Iterator[None]:
    """Have interrupts raise: a job in the background is born deaf to them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


STEPS = {
    "random states are taken down": (process, "_switches"),
    "the model is taken down": (holdings.Swapped, "_keep"),
    "stand-ins are put in": (holdings.Swapped, "_swap"),
    "state is listed": (capturing, "list_state"),
    "modes are entered": (modes, "_on_top"),
    "calls are taken over": (Leaves, "__enter__"),
    "calls are given back": (Leaves, "__exit__"),
    "hooks are taken off": (Scopes, "__exit__"),
    "all is put back": (holdings.Swapped, "_restore"),
    "switches are put back": (process, "_put_switches_back"),
}


def called() -> tuple[Any, ...]:
    """Return what runs where a module is called."""
    module: Any = nn.Module  # to mypy a private name is none
    call = module._call_impl
    return call, call.__code__, call.__kwdefaults__


@pytest.mark.parametrize("name", STEPS)
def test_an_interrupt_waits_while_a_run_is_set_up_or_ends(
    name: str, hearing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> Any:
        holders = [(module.__dict__, module._parameters, module._buffers) for module in model.modules()]
        held = [[(type(of), name, id(value)) for name, value in of.items()] for all_of in holders for of in all_of]
        hooks = [list(hooks) for name, hooks in vars(torch_module).items() if name.startswith("_global_") and hooks]
        stacks = torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()
        patched = called(), sys.stdout, torch.backends.mha.get_fastpath_enabled()
        return held, hooks, stacks, patched, torch.is_grad_enabled(), random.getstate(), torch.get_rng_state().tolist()

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    owner, attribute = STEPS[name]
    work, before = getattr(owner, attribute), state()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(model, (4,))
    assert state() == before


def test_an_interrupt_that_somebody_swallows_is_not_the_last(hearing: None) -> None:
    def forward(held: Any, x: torch.Tensor) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        held.append(1)
        signal.raise_signal(signal.SIGINT)
        held.append(2)

    seen: list[int] = []
    model = Held(seen, lambda _, x: forward(seen, x))
    with pytest.raises(KeyboardInterrupt):
        analyze(model, (2,))
    assert 2 not in seen


def test_interrupts_at_any_moment(hearing: None) -> None:
    """From a timer, over and over: each ends an analysis, and leaves the model as it was."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    own = {name: id(parameter) for name, parameter in model.named_parameters()}
    before = called()
    analyze(model, (4,))
    is_armed = False

    def ring(*_: Any) -> None:
        nonlocal is_armed
        is_armed = False
        signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGALRM, ring)
    try:
        for round in range(300):
            is_armed = True
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 4e-6 * round)
                analyze(model, (4,))
                while is_armed:  # it has not rung yet
                    pass
            assert {name: id(parameter) for name, parameter in model.named_parameters()} == own
            assert called() == before
            assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
    finally:
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("execute", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_model_waits_for_the_collector(training: bool, execute: bool) -> None:
    def analysed() -> tuple[Any, list[weakref.ref[Any]]]:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        held = [weakref.ref(thing) for thing in (*model.modules(), *model.parameters(), *model.buffers())]
        options: dict[str, Any] = {"training": True, "optimizer": "adamw"} if training else {}
        return analyze(model, (3, 8, 8), execute=execute, **options), held

    analysed()
    gc.collect()
    gc.disable()
    try:
        ledger, held = analysed()
        assert ledger.totals()["params"] and not [thing() for thing in held if thing() is not None]
    finally:
        gc.enable()


def test_what_was_set_up_is_put_back_where_the_rest_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("no filter")

    importlib.import_module("torch._dynamo")  # brings filters of its own
    filters = list(warnings.filters)
    monkeypatch.setattr(process, "_COMPILE", ("torch",))  # as where the compiler is there
    monkeypatch.setattr(warnings, "filterwarnings", lambda *_, **options: fails(**options))
    with pytest.raises(RuntimeError, match="no filter"):
        analyze(nn.Linear(4, 4), (4,))
    assert torch._dynamo.eval_frame._stance.stance == "default" and warnings.filters == filters


# ---- what is common among modules


class Flagged(nn.Module):
    """A model whose forward may do something to its own modules, and notes their flags."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.hidden = [nn.Dropout(0.5)]  # not registered: eval() does not reach it either
        self.change = change
        self.flags: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.flags[:] = [module.training for module in (self, *self.body, *self.hidden)]
        if self.change is not None:
            self.change(self)
        return self.hidden[0](self.body(x))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    "change",
    [
        None,
        lambda net: net.eval(),
        lambda net: net.train(),
        lambda net: net.body.__dict__.pop("training"),
        lambda net: net.body.__dict__.update(training=None),
    ],
)
def test_flags_are_set_and_come_back(mode: Any, change: Any) -> None:
    model = Flagged(change)
    model.body[0].eval()
    seen = []

    def noted(net: Flagged) -> None:
        seen[:] = net.flags
        if change is not None:
            change(net)

    model.change = noted
    with contextlib.suppress(ForwardError):  # of a module without a flag
        analyze(model, (4,), mode=mode)
    assert seen == [mode == "train"] * 3 + [True]
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert list(model.body.__dict__) == list(nn.Sequential().__dict__)


@pytest.mark.parametrize("flag", [1, 0, None, "yes", numpy.True_])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_flags_of_another_kind_are_set_too(flag: Any, mode: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    expected = analyze(model, (4,), mode=mode).totals()
    for module in model.modules():
        module.training = flag
    assert analyze(model, (4,), mode=mode).totals() == expected
    assert all(module.training is flag for module in model.modules())


class Early(nn.Module):
    """It has attributes from before `super().__init__()`, of which one has no truth value."""

    def __init__(self) -> None:
        self.first, self.second, self.third = 0, 0, 0
        self.mean = torch.tensor([0.5, 0.4, 0.3])
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.mean


def test_attributes_from_before_the_module_itself() -> None:
    model = nn.Sequential(Early(), nn.Linear(3, 3))
    before = list(model[0].__dict__.items())
    assert analyze(model, (3,)).totals()["macs"] == 9
    assert all(now is then for now, then in zip(model[0].__dict__.values(), dict(before).values(), strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "register",
    [
        lambda net, x: net.register_buffer("seen", torch.ones(2)),
        lambda net, x: net.register_parameter("seen", nn.Parameter(torch.ones(2))),
        lambda net, x: net.add_module("seen", nn.ReLU()),
        lambda net, x: setattr(net, "seen", nn.Linear(1, 1)),
    ],
)
def test_what_forward_registers_where_nothing_was_goes(register: Any, training: bool) -> None:
    class Lazy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            register(self, x)
            return x * 2

    model = nn.Sequential(nn.Linear(4, 4), Lazy())
    inner = [getattr(model[1], name) for name in ("_parameters", "_buffers", "_modules")]
    analyze(model, (4,), training=training)
    assert inner == [{}, {}, {}]
    assert [getattr(model[1], name) for name in ("_parameters", "_buffers", "_modules")] == inner
    assert not hasattr(model[1], "seen")


def test_torchs_own_modules_are_of_the_common_sort() -> None:
    """Else all would be looked into, which is slow, and which nothing else would tell."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Flatten())
    with torch.no_grad(), holdings.Swapped([*model.modules()], [], Twins()) as swapped:
        assert not swapped._rare and not swapped._saved and not swapped._seen
        assert len(swapped._waits) == len(swapped._waiting) == 3


class Switching(nn.Module):
    """Its flag is a property, which says how often it was set."""

    def __init__(self) -> None:
        self.times = 0
        super().__init__()

    @property
    def training(self) -> bool:
        return bool(self.__dict__.get("_flag", True))

    @training.setter
    def training(self, flag: bool) -> None:
        self.times += 1
        self.__dict__["_flag"] = flag

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else x * 2


def test_a_flag_that_is_a_property_is_set_as_one() -> None:
    model = Switching()
    times = model.times
    assert analyze(model, (4,)).totals()["operations"] == 1
    assert analyze(model, (4,), mode="train").totals()["operations"] == 0
    assert model.training and model.times == times


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.sizes.append(2),
        lambda net: net.sizes.__setitem__(1, 1),  # equal to what was there, and not the same
        lambda net: net.sizes.clear(),
        lambda net: net.sizes.reverse(),
        lambda net: setattr(net, "sizes", []),
    ],
)
def test_lists_of_numbers_come_back(change: Any) -> None:
    class Sized(nn.Module):
        """It has no other attributes of its own, which would have all of them looked into."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes = [1, True, "a", None]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            change(self)
            return x

    model = Sized()
    sizes = model.sizes
    analyze(model, (4,))
    assert model.sizes is sizes
    assert list(map(repr, sizes)) == ["1", "True", "'a'", "None"]


def test_modules_that_share_their_attributes() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.__dict__ = first.__dict__
    model = nn.Sequential(first, second)
    weight = first.weight
    ledger = analyze(model, (4,))
    assert ledger.totals()["params"] == 20
    assert ledger.totals()["macs"] == 2 * 16
    assert first.__dict__ is second.__dict__ and first.weight is weight


def test_parameters_stand_in_the_order_of_modules() -> None:
    """Also where a list leads to a module before its turn."""
    model = Flagged()
    model.body.append(nn.Linear(4, 4, bias=False))
    model.hidden.append(model.body[2])
    model._modules = {"last": nn.Linear(1, 1), **model._modules}
    object.__setattr__(model._modules["last"], "others", [model.body[2]])
    ledger = analyze(model, (4,))
    assert [row.path for row in ledger.record.parameters] == [name for name, _ in model.named_parameters()]
