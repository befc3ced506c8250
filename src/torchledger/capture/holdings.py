"""What hangs on a model: taking it down, putting stand-ins in its place, and putting every bit of it back."""

from __future__ import annotations

import contextlib
import functools
import operator
import random
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from sys import getrefcount
from types import BuiltinFunctionType, EllipsisType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import torch
from torch import nn

from torchledger.capture.twins import Copies, Twins, gradient_hooks
from torchledger.capture.waiting import Waiting

# What can hold nothing of the user's that changes in place, or is twinned on its own: most values that a module has.
_TENSORS = (torch.Tensor, nn.Parameter)
_DICTS = (dict, OrderedDict)
_NOTHING = frozenset(
    {int, float, bool, complex, str, bytes, NoneType, EllipsisType, torch.Size, torch.dtype, torch.device}
    | {BuiltinFunctionType, ModuleType, type}
)
_PLAIN = _NOTHING | {*_TENSORS}
# What nn.Module itself puts into each module: first its own attributes, in this order; most are hooks, and empty.
_NEW = vars(nn.Module())
_NAMES = tuple(_NEW)
_INNER = ("_parameters", "_buffers", "_modules")
_EMPTIES = frozenset({dict, OrderedDict, set})
_COUNT = len(_NAMES)
_TRAINING = _NAMES.index("training")
# These take what is there out of the values of a module's dict.
_inner_of = operator.itemgetter(*map(_NAMES.index, _INNER))
_HOOKS = [place for place, name in enumerate(_NAMES) if type(_NEW[name]) in _EMPTIES and name not in _INNER]
_hooks_of = operator.itemgetter(slice(_HOOKS[0], _HOOKS[-1] + 1))  # and a flag among them, which is unset without any
# Objects of these packages lead out of the model, to what the whole process shares.
_FOREIGN = frozenset(
    "logging threading _thread io _io multiprocessing concurrent asyncio socket queue weakref _weakref".split()
)
_SET_ATTRIBUTE: Any = nn.Module.__setattr__
_CACHED = functools._lru_cache_wrapper
_LARGEST_ARRAY = 1 << 22  # elements: larger numpy arrays are data sets rather than state, and are not copied


class Swapped:
    """The model with its tensors replaced by stand-ins: a context that puts back every attribute of every module.

    For where interrupts are held back.

    So are the lists, dicts, sets, small arrays, random generators and objects that hang on a module, and its class,
    also when the forward raises or when an attribute was added, removed or filled.
    """

    def __init__(
        self, modules: Iterable[nn.Module], given: list[Any], stand_ins: Twins | Copies, training: bool | None = None
    ) -> None:
        """`given`: what forward is given. `training`: what the flags of `modules` are to be; None: as they are."""
        self._planned = {id(module): module for module in modules}
        self._given = given
        self._stand_ins = stand_ins
        self._training = training
        self._seen: set[int] = set()
        self._saved: list[tuple[Any, Any]] = []  # (dict, list, set, deque or array, a copy of it)
        self._flat: list[tuple[list[Any], tuple[Any, ...]]] = []  # lists of numbers and texts, with what is in them
        self._empty: list[Any] = []  # dicts and sets with nothing in them, flags of modules that are unset among these
        self._modules: list[nn.Module] = []
        self.kinds: list[type] = []  # the classes of modules
        # Dicts of modules, attributes and children: the dict, its keys, its values.
        self._dicts: list[tuple[dict[str, Any], tuple[str, ...], tuple[Any, ...]]] = []
        self._names: dict[type, tuple[str, ...]] = {}  # of the attributes that a module of a class had last
        self.functions: list[Any] = []  # what hangs on the model and may have a cache
        self._held: list[tuple[dict[Any, Any], Any, torch.Tensor]] = []  # tensors in plain dicts: dict, key, tensor
        # (attributes of a module, name, dict): state whose twins can wait. In a training step all is looked at.
        self._waiting: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
        self._waits: list[Waiting] = []  # what stands for these
        self._may_wait = isinstance(stand_ins, Twins) and not torch.is_grad_enabled()
        # Attributes of modules whose flag `training` is not as it is to be, and the flag.
        self._switched: list[tuple[dict[str, Any], Any]] = []
        self._rare: list[nn.Module] = []  # modules that are not of the common sort
        self._slots: list[tuple[Any, str, Any]] = []
        self._others: list[Callable[[], object]] = []  # what puts back random generators and scripted modules

    def __enter__(self) -> Swapped:
        try:
            self._keep()
            self._swap()
            self._switch()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _switch(self) -> None:
        """Set the flags of all modules."""
        training = self._training
        if training is not None:
            for attributes, _ in self._switched:
                attributes["training"] = training
            for module in self._rare:
                if id(module) in self._planned and module.training is not training:
                    module.training = training

    def _restore(self) -> None:
        """Put everything back, each holder whatever happens to another; raise the first error at the end."""
        steps: list[Callable[[], object]] = []
        if list(map(type, self._modules)) != self.kinds:
            for module, kind in zip(self._modules, self.kinds, strict=False):  # none yet where taking down failed
                if type(module) is not kind:
                    steps.append(functools.partial(object.__setattr__, module, "__class__", kind))
        for attributes, flag in self._switched:
            attributes["training"] = flag
        for attributes, name, state in self._waiting:
            attributes[name] = state
        for waiting in self._waits:  # whoever still holds one finds what it held last
            waiting.make, waiting.real = None, _GONE
        self._waiting.clear()
        for held, names, values in self._dicts:
            if (*held,) != names or False in map(operator.is_, held.values(), values):
                _put_back_dict(held, dict(zip(names, values, strict=True)))
        self._dicts.clear()  # nobody but a module shall hold its dicts: the next run counts who does
        for listed, items in self._flat:
            if len(listed) != len(items) or False in map(operator.is_, listed, items):
                steps.append(functools.partial(_put_back, listed, items))
        if any(self._empty):
            steps += [holder.clear for holder in self._empty if holder]
        steps += [functools.partial(_put_back, holder, content) for holder, content in self._saved]
        steps += [functools.partial(_put_back_slot, *slot) for slot in self._slots]
        steps += self._others
        steps.append(self._stand_ins.put_back)
        errors: list[Exception] = []
        for step in steps:
            try:
                step()
            except Exception as error:
                errors.append(error)
        if isinstance(self._stand_ins, Twins):
            self._stand_ins.looked_at.clear()  # they lead back here: nothing of the user's shall wait for the collector
        if errors:
            raise errors[0]

    def _keep(self) -> None:
        """Take down the modules, what is given, and all that hangs on them, by a stack: objects nest deep."""
        pending: list[Any] = []
        seen, saved, empty = self._seen, self._saved, self._empty
        left = set(self._planned)  # of the model's modules
        planned = frozenset(left)
        take_down = self._taking_down(planned, pending)
        common: dict[type, bool] = {}  # by class: whether it is that of a module of the common sort
        for root in (*self._planned.values(), *self._given):
            pending.append(root)
            while pending:
                value = pending.pop()
                kind = type(value)
                is_common = common.get(kind)
                if is_common is None:
                    is_common = common[kind] = kind.__setattr__ is _SET_ATTRIBUTE and not _slots_of(kind)
                if is_common:
                    number = id(value)
                    if number in left:
                        left.discard(number)
                        take_down(value, kind)
                    elif number not in planned and number not in seen:
                        seen.add(number)
                        take_down(value, kind)
                elif kind is dict or kind is OrderedDict:
                    if not value:
                        empty.append(value)
                    elif id(value) not in seen:
                        seen.add(id(value))
                        saved.append((value, value.copy()))
                        self._look_into(value, value, pending)
                elif kind in _PLAIN or id(value) in seen:
                    continue
                elif kind is FunctionType:
                    self.functions.append(value)
                else:
                    seen.add(id(value))
                    if kind is _CACHED:
                        self.functions.append(value)
                    # Some objects raise whatever one asks of them (a proxy whose target has gone): they stay as they
                    # are.
                    with contextlib.suppress(Exception):
                        pending += self._take_down(value, kind)
        self.kinds = list(map(type, self._modules))

    def _taking_down(self, planned: frozenset[int], pending: list[Any]) -> Callable[[nn.Module, type], None]:
        """Return what takes down a module of the common sort, and adds to `pending` what it leads to but the `planned`.

        A model has hundreds of modules: names that each of them needs are looked up once.
        """
        modules, dicts, waiting, flat = self._modules, self._dicts, self._waiting, self._flat
        seen, may_wait, names_of = self._seen, self._may_wait, self._names
        rare, switched, empty, training = self._rare, self._switched, self._empty, self._training

        def take_down(module: nn.Module, kind: type) -> None:
            modules.append(module)
            attributes = module.__dict__
            is_plain = getrefcount(attributes) == _ALONE
            if not is_plain:  # two modules may share them
                if id(attributes) in seen:
                    rare.append(module)
                    return
                seen.add(id(attributes))
            names, values = (*attributes,), (*attributes.values(),)
            like = names_of.get(kind)
            if names == like:
                names = like  # one tuple for all modules of a class
            elif names[:_COUNT] == _NAMES:
                names_of[kind] = names
            else:
                is_plain = False
            dicts.append((attributes, names, values))
            if not is_plain or any(hooks := _hooks_of(values)):
                rare.append(module)
                self._look_into(attributes, names, pending)
                return
            empty.extend(hooks)
            if values[_TRAINING] is not training and training is not None and id(module) in planned:
                switched.append((attributes, values[_TRAINING]))
            parameters, buffers, children = _inner_of(values)
            if parameters:
                if may_wait and getrefcount(parameters) == _HELD and _is_plain_state(parameters):
                    waiting.append((attributes, "_parameters", parameters))
                else:
                    pending.append(parameters)
            else:
                empty.append(parameters)
            if buffers:
                if may_wait and getrefcount(buffers) == _HELD and _is_plain_state(buffers):
                    waiting.append((attributes, "_buffers", buffers))
                else:
                    pending.append(buffers)
            else:
                empty.append(buffers)
            if children:
                if type(children) is dict:
                    held = (*children.values(),)
                    dicts.append((children, (*children,), held))
                    if not planned.issuperset(map(id, held)):
                        pending.extend(held)
                else:
                    pending.append(children)
            else:
                empty.append(children)
            own = values[_COUNT:]
            if not _NOTHING.issuperset(map(type, own)):
                for item in own:
                    inner = type(item)
                    if inner in _NOTHING:
                        continue
                    if (inner is tuple or inner is list) and _NOTHING.issuperset(map(type, item)):
                        if inner is list:
                            flat.append((item, (*item,)))
                        continue
                    self._look_into(attributes, names[_COUNT:], pending)
                    break

        return take_down

    def _look_into(self, value: dict[Any, Any], keys: Iterable[Any], pending: list[Any]) -> None:
        """Take down the tensors and empty holders among these items of a dict; what may hold more is `pending`."""
        for key in keys:
            item = value[key]
            inner = type(item)
            if inner in _NOTHING:
                continue
            if inner in _TENSORS:
                self._held.append((value, key, item))
            elif inner is tuple:  # sizes for the most part
                if not _NOTHING.issuperset(map(type, item)):
                    pending += item
            elif inner in _EMPTIES:
                if not item:
                    self._empty.append(item)
                else:
                    pending.append(item)
            else:
                pending.append(item)
                if issubclass(inner, torch.Tensor):
                    self._held.append((value, key, item))

    def _take_down(self, value: Any, kind: type) -> list[Any]:
        """Take down one value of a rarer kind; return what to look into next."""
        inside: list[Any] = []
        if isinstance(value, nn.Module):
            self._modules.append(value)
            self._rare.append(value)
            if isinstance(value, torch.jit.ScriptModule):
                self._take_down_script(value)
        elif isinstance(value, (dict, list, set, deque, bytearray)):
            given: Any = value
            base = _kind_of(value)
            content: Any = dict(base.items(given)) if base is dict else base(base.__iter__(given))
            self._saved.append((value, content))
            if base is not bytearray:
                inside += content.values() if base is dict else content
            if kind is base:
                return inside
        elif isinstance(value, (tuple, frozenset)):
            return list(value)
        elif isinstance(value, MethodType):
            return [value.__self__]
        elif isinstance(value, torch.Generator):
            self._others.append(functools.partial(value.set_state, value.get_state()))
            return []
        elif isinstance(value, random.Random):
            self._others.append(functools.partial(value.setstate, value.getstate()))
            return []
        elif kind.__module__.partition(".")[0] == "numpy":
            self._take_down_numpy(value, kind)
            return []
        elif isinstance(value, (torch.Tensor, type)) or kind.__module__.partition(".")[0] in _FOREIGN:
            return []
        for name in _slots_of(kind):
            content = _EMPTY
            with contextlib.suppress(AttributeError):
                content = object.__getattribute__(value, name)
                inside.append(content)
            self._slots.append((value, name, content))
        with contextlib.suppress(AttributeError):
            inside.append(object.__getattribute__(value, "__dict__"))
        return inside

    def _take_down_numpy(self, value: Any, kind: type) -> None:
        if kind.__name__ == "ndarray" and value.size <= _LARGEST_ARRAY and value.flags.writeable:
            self._saved.append((value, value.copy()))
        elif kind.__name__ == "RandomState":
            self._others.append(functools.partial(value.set_state, value.get_state()))
        elif kind.__name__ == "Generator":
            bits = value.bit_generator
            self._others.append(functools.partial(setattr, bits, "state", bits.state))

    def _take_down_script(self, module: torch.jit.ScriptModule) -> None:
        """Take down what a scripted module keeps in C++: its flag and its tensors, which get stand-ins here.

        On meta the tensors may stay: they get their twins as they come up. Not so where gradients are wanted, which
        autograd would send to the real ones.
        """
        inner = module._c
        self._others.append(functools.partial(inner.setattr, "training", module.training))
        learns = torch.is_grad_enabled()
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if self._stand_ins.is_made(tensor):
                continue  # a traced module is met under several wrappers, which share what they hold
            self._others.append(functools.partial(inner.setattr, name, tensor))
            if learns or (isinstance(self._stand_ins, Copies) and not isinstance(tensor, nn.Parameter)):
                inner.setattr(name, self._stand_ins.of(tensor))

    def _swap(self) -> None:
        """Put stand-ins for the tensors in all that was taken down."""
        stand_in = self._stand_ins.of
        for held, key, tensor in self._held:
            try:
                held[key] = stand_in(tensor)
            except RuntimeError:  # NotImplementedError too, of a quantised one: as it is
                continue
        for holder, content in self._saved:  # by type, not by isinstance: a proxy may raise when it is asked
            if type(holder) in _DICTS:
                continue
            if isinstance(content, dict):
                assign = OrderedDict.__setitem__ if isinstance(holder, OrderedDict) else dict.__setitem__
                for key, value in content.items():
                    kind = type(value)
                    if kind in _TENSORS or (kind not in _PLAIN and issubclass(kind, torch.Tensor)):
                        with contextlib.suppress(NotImplementedError, RuntimeError):  # quantised: as it is
                            assign(holder, key, stand_in(value))
            elif isinstance(content, (list, deque)):
                for index, value in enumerate(content):
                    if issubclass(type(value), torch.Tensor):
                        with contextlib.suppress(NotImplementedError, RuntimeError):
                            type(content).__setitem__(holder, index, stand_in(value))
        for holder, name, value in self._slots:
            if issubclass(type(value), torch.Tensor):
                with contextlib.suppress(NotImplementedError, RuntimeError):
                    object.__setattr__(holder, name, stand_in(value))
        for tensor, stand in self._stand_ins.pairs:
            self._keep_hooks(tensor, stand)
        if isinstance(self._stand_ins, Twins):
            self._stand_ins.looked_at.append(self._keep_hooks)
        states = [state for _, _, state in self._waiting]
        stands = self._stand_ins.wait(states) if isinstance(self._stand_ins, Twins) else []
        for (attributes, name, state), waiting in zip(self._waiting, stands, strict=True):
            if waiting is not None:
                attributes[name] = waiting  # the module's own dict stays as it is
                self._waits.append(waiting)
                continue
            self._saved.append((state, state.copy()))
            for key, tensor in state.items():
                if tensor is not None:
                    with contextlib.suppress(NotImplementedError, RuntimeError):
                        state[key] = stand_in(tensor)
                        self._keep_hooks(tensor, state[key])

    def _keep_hooks(self, tensor: torch.Tensor, _: torch.Tensor) -> None:
        self._saved += [(hooks, dict(hooks)) for hooks in gradient_hooks(tensor)]


_GONE: dict[str, Any] = {}
_STATE_KINDS = frozenset({*_TENSORS, NoneType})


def _is_plain_state(state: Any) -> bool:
    return type(state) is dict and _STATE_KINDS.issuperset(map(type, state.values()))


def _references() -> tuple[int, int]:
    """Return how many references `take_down` counts to attributes, and to a dict, that a module alone holds."""
    module = nn.Module()
    attributes = module.__dict__
    alone = getrefcount(attributes)
    values = (*attributes.values(),)
    parameters, _, _ = _inner_of(values)
    return alone, getrefcount(parameters)


_ALONE, _HELD = _references()


_EMPTY: Any = object()  # stands for what an empty slot holds


def _put_back_slot(holder: Any, name: str, content: Any) -> None:
    if content is not _EMPTY:
        object.__setattr__(holder, name, content)
    else:
        with contextlib.suppress(AttributeError):  # it is still empty
            object.__delattr__(holder, name)


_SLOTS: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of all slots of a class, as they are stored."""
    known = _SLOTS.get(kind)
    if known is not None:
        return known
    found: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        private = base.__name__.lstrip("_")
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            is_private = name.startswith("__") and not name.endswith("__") and private
            found.append(f"_{private}{name}" if is_private else name)
    _SLOTS[kind] = tuple(name for name in found if name not in ("__dict__", "__weakref__"))
    return _SLOTS[kind]


def _kind_of(holder: Any) -> Any:
    """Return the container of Python's own that `holder` is, or derives from: a subclass may change its methods."""
    return next(kind for kind in (dict, list, set, deque, bytearray) if isinstance(holder, kind))


def _put_back(holder: Any, content: Any) -> None:
    """Make `holder` hold `content` again: add before removing, so that nothing is lost on the way."""
    if isinstance(holder, dict):
        _put_back_dict(holder, content)
    elif isinstance(holder, list):
        list.__setitem__(holder, slice(None), content)
    elif isinstance(holder, set):
        set.update(holder, content)
        set.intersection_update(holder, content)
    elif isinstance(holder, bytearray):
        bytearray.__setitem__(holder, slice(None), content)
    elif isinstance(holder, deque):
        if len(holder) != len(content) or any(a is not b for a, b in zip(holder, content, strict=True)):
            deque.clear(holder)
            deque.extend(holder, content)
    else:
        holder[...] = content  # a numpy array


def _put_back_dict(holder: Any, content: dict[Any, Any]) -> None:
    base: Any = OrderedDict if isinstance(holder, OrderedDict) else dict
    if type(holder) is base:
        holder.update(content)
    else:  # a subclass may forbid it
        for key, value in content.items():
            base.__setitem__(holder, key, value)
    if base.__len__(holder) != len(content):
        for key in [key for key in base.__iter__(holder) if key not in content]:
            base.__delitem__(holder, key)
    if list(base.__iter__(holder)) != list(content):  # a key that was taken out and came back stands last
        for key, value in content.items():
            base.__delitem__(holder, key)
            base.__setitem__(holder, key, value)
