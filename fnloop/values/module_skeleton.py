"""The skeleton of an ``nn.Module``."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fnloop._torch.hooks import hooks_made
from fnloop._torch.read_only import memory_of
from fnloop._torch.tracing import opaque
from fnloop.trees.show import short
from fnloop.values.class_attributes import ClassAttributes
from fnloop.values.close_look import CloseLook, check_draws, replaced_error
from fnloop.values.host_random import host_seeded, source_of
from fnloop.values.mode import set_training
from fnloop.values.mode import training as training_now
from fnloop.values.module_copy import Places, TensorPlace, placeholder, places, private_copy
from fnloop.values.module_likeness import behave_alike
from fnloop.values.module_parts import ModuleParts, attributes_of, join
from fnloop.values.module_refusals import refuse_module, refuse_parts
from fnloop.values.module_watch import ModuleWatch, alike
from fnloop.values.parameter_attributes import attributes_on, put_attributes
from fnloop.values.shared_memory import views

T = TypeVar("T")

Mode: TypeAlias = tuple[bool, tuple[str, ...]]
"""Whether a module is trained, and the names of the parameters that are frozen meanwhile."""

_EVALUATION: Mode = (False, ())


class _Standing(NamedTuple):
    """What is in the places of a module: registered as a parameter or buffer, or elsewhere."""

    registered: list[Any]
    others: list[Any]


class ModuleSkeleton:
    """The skeleton of an ``nn.Module``: a private copy with meta tensors as placeholders."""

    def __init__(self, module: nn.Module) -> None:
        refuse_module(module)
        self.module, originals = private_copy(module)
        self._lock = threading.RLock()
        modules = dict(self.module.named_modules())
        self._modules = [
            (child, child.training or not module.training) for child in modules.values()
        ]
        self._original_modes = [child.training for child in modules.values()]
        self._mode: Mode | None = _EVALUATION
        self._resting: dict[tuple[str, ...], list[bool]] = {}
        self._depth = 0
        self.module.eval()

        params, buffers = dict(self.module.named_parameters()), dict(self.module.named_buffers())
        names = {id(tensor): name for name, tensor in {**params, **buffers}.items()}
        parts = ModuleParts(self.module, names, originals)
        refuse_parts(parts, module)
        # A copy of a parameter has memory of its own, so look at the original's.
        others = [(path, originals[id(tensor)]) for path, tensor in parts.tensors]
        self._views = views(dict(module.named_parameters()), dict(module.named_buffers()), others)
        self._param_places = Places(places((m._parameters for m in modules.values()), names))
        self._buffer_places = Places(places((m._buffers for m in modules.values()), names))
        self._aliases = parts.places
        self.trainable = tuple(n for n, p in params.items() if p.requires_grad)
        self.attributes = attributes_on(params)
        self.statistics = {
            path: (names[id(child.running_mean)], names[id(child.running_var)])
            for path, (child, trains) in zip(modules, self._modules, strict=True)
            if trains and isinstance(child, _BatchNorm) and child.running_mean is not None
        }
        self._identity = (
            tuple((name, _kind(child), child.extra_repr()) for name, child in modules.items()),
            tuple(params),
            self.trainable,
            tuple(buffers),
        )
        self._hash = hash(self._identity)
        self._find_places()
        self._placeholders = self._empty()
        self._look = CloseLook()
        self._watch = ModuleWatch(parts, type(module).__name__)
        self._generators = [source_of(path, generator) for path, generator in parts.generators]
        self._registered = [
            (owner, frozenset(owner), name, kind)
            for name, child in modules.items()
            for owner, kind in ((child._parameters, "parameter"), (child._buffers, "buffer"))
        ]
        self._unset_buffers = [
            (child._buffers, key, join(name, key))
            for name, child in modules.items()
            for key, buffer in child._buffers.items()
            if buffer is None
        ]

    def _find_places(self) -> None:
        """Find the places beside ``_parameters`` and ``_buffers``, such as a list of weights."""
        others = [TensorPlace(attributes_of(o), key, name) for o, key, name in self._aliases]
        buffers = {place.name for place in self._buffer_places}
        self._param_aliases = [place for place in others if place.name not in buffers]
        self._buffer_aliases = [place for place in others if place.name in buffers]
        self._registers = Places((*self._param_places, *self._buffer_places))
        self._others = [*self._param_aliases, *self._buffer_aliases]

    def _empty(self) -> _Standing:
        """Replace the tensors by placeholders, which keep only shape and dtype; return these."""
        placeholders: dict[str, Tensor] = {}
        for owner, key, name in (*self._registers, *self._others):
            if name not in placeholders:
                placeholders[name] = placeholder(owner[key])
            owner[key] = placeholders[name]
        return self._standing()

    def call(
        self,
        function: Callable[[Any], T],
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        training: bool,
        user: Any = None,
        frozen: tuple[str, ...] = (),
    ) -> tuple[T, dict[str, Tensor]]:
        # Write the tensors directly into the modules' dicts: functional_call takes 50 us more.
        # Afterwards restore the placeholders, so that no tensor stays alive; in a nested call,
        # restore the outer call's tensors.
        user = function if user is None else user
        with self._lock:
            nested = self._depth > 0
            before = self._standing() if nested else self._placeholders
            modes = self._mode, training_now()
            fresh = self._fresh(buffers) if buffers else {}
            look = self._look.due(user, training)
            closely = look is True
            hooks = hooks_made()
            classes = ClassAttributes(self.module) if closely else None
            self._depth += 1
            changed: list[str] = []
            new: list[str] = []
            try:
                mode = (True, frozen) if training else _EVALUATION
                if mode != self._mode:
                    self._set_mode(mode)
                set_training(training)
                self._param_places.fill_from(params)
                if self.attributes:
                    put_attributes(params, self.attributes)
                if fresh:
                    self._buffer_places.fill_from(fresh)
                for owner, key, name in self._param_aliases:
                    owner[key] = params[name]
                for owner, key, name in self._buffer_aliases:
                    owner[key] = fresh[name]
                if self._generators:
                    function = self._drawing(function, user)
                if look is None:
                    result = function(self.module)
                else:
                    result = self._look.call(function, self.module, params, user, training, look)
                if closely:
                    self._check_places(params, user)
                after = self._buffers_after(fresh) if fresh else {}
                if closely and fresh and not training and not opaque():
                    self._watch.tell_dropped(_differing(buffers, after))
            finally:
                self._depth -= 1
                if nested and self._mode != modes[0]:
                    self._set_mode(modes[0] or _EVALUATION)
                set_training(modes[1])
                self._registers.fill(before.registered)
                for (owner, key, _), tensor in zip(self._others, before.others, strict=True):
                    try:
                        owner[key] = tensor
                    except IndexError:  # the model has shortened a list, which is put back below
                        continue
                if not nested:
                    changed = self._watch.put_back(closely, hooks)
                    if closely or self._unset_buffers:
                        new = self._unregister()
            if new:
                raise ValueError(new[0])
            if changed:
                self._watch.tell(changed)
            if classes is not None and (shared := classes.changed()):
                self._watch.tell_shared(shared)
            return result, after

    def _drawing(self, function: Callable[[Any], T], user: Any) -> Callable[[Any], T]:
        """`function` with the model's own generators of random numbers seeded from the state."""

        def call(model: Any) -> T:
            with host_seeded(self._generators) as host:
                result = function(model)
            if host.drew and opaque():
                check_draws(host.drew, short(user))
            return result

        return call

    def _fresh(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the buffers, which share memory where those of the module do."""
        fresh = dict(zip(buffers, map(Tensor.clone, buffers.values()), strict=True))
        for view in self._views:
            fresh[view.base] = fresh[view.base].contiguous()
        for view in self._views:
            fresh[view.name] = view.of(fresh[view.base])
        return fresh

    def _buffers_after(self, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The buffers after a call: written in place, or assigned anew."""
        named = self._buffer_places.named()
        after = dict(zip(named, map(Tensor.detach, named.values()), strict=True))
        for view in self._views:
            after[view.name] = after[view.name].clone()
        for _, _, name in self._buffer_aliases:
            if memory_of(after[name])[0] != memory_of(fresh[name])[0]:
                raise ValueError(_ALIAS.format(name=name))
        return after

    def _check_places(self, params: Mapping[str, Tensor], user: Any) -> None:
        """Refuse parameters that were assigned anew."""
        for owner, key, name in self._param_places:
            if owner.get(key) is not params[name]:
                raise replaced_error(user, name)

    def _unregister(self) -> list[str]:
        """Remove parameters and buffers that the call has added; return what to say of each."""
        found: list[str] = []
        for owner, keys, path, kind in self._registered:
            for key in owner.keys() - keys:
                del owner[key]
                found.append(_NEW.format(kind=kind, name=join(path, key)))
        for owner, key, name in self._unset_buffers:
            if owner[key] is not None:
                owner[key] = None
                found.append(_UNSET.format(name=name, key=key))
        return found

    def _standing(self) -> _Standing:
        others = [owner[key] for owner, key, _ in self._others]
        return _Standing(self._registers.standing(), others)

    def _set_mode(self, mode: Mode) -> None:
        training, frozen = mode
        self._mode = None  # until all of it is done: an exception may come in between
        for (child, trains), rests in zip(self._modules, self._at_rest(frozen), strict=True):
            child.training = training and trains and not rests
        self._watch.mode_changed()
        self._mode = mode

    def _at_rest(self, frozen: tuple[str, ...]) -> list[bool]:
        """For each module, whether it is in one all of whose parameters are frozen."""
        if frozen not in self._resting:
            owned: dict[int, list[str]] = {}
            for place in self._param_places:
                owned.setdefault(id(place.owner), []).append(place.name)
            modules = [child for child, _ in self._modules]
            resting = set[nn.Module]()
            for module in modules if frozen else ():
                names = [n for m in module.modules() for n in owned.get(id(m._parameters), ())]
                if names and set(names).issubset(frozen):
                    resting.update(module.modules())
            self._resting[frozen] = [module in resting for module in modules]
        return self._resting[frozen]

    def build(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> nn.Module:
        twins: dict[int, Any] = {}
        with self._lock:
            module = copy.deepcopy(self.module, twins)
        copies: dict[str, Tensor] = {}
        for name, value in params.items():
            copies[name] = nn.Parameter(
                value.detach().clone(), requires_grad=name in self.trainable
            )
        put_attributes(copies, copy.deepcopy(self.attributes))
        copies.update(self._fresh({name: value.detach() for name, value in buffers.items()}))
        for child, twin in zip(self.module.modules(), module.modules(), strict=True):
            twins[id(child._parameters)] = twin._parameters
            twins[id(child._buffers)] = twin._buffers
        for owner, key, name in (*self._param_places, *self._buffer_places):
            twins[id(owner)][key] = copies[name]
        for owner, key, name in self._aliases:
            if id(owner) in twins:  # recurrent layers make their list of weights anew
                attributes_of(twins[id(owner)])[key] = copies[name]
        for child, mode in zip(module.modules(), self._original_modes, strict=True):
            child.training = mode
        return module

    def behaves_like(self, other: Any) -> bool:
        if self is other:
            return True
        return (
            self == other
            and [trains for _, trains in self._modules] == [trains for _, trains in other._modules]
            and behave_alike(self.module, other.module)
        )

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, ModuleSkeleton) and self._identity == other._identity
        )

    def __hash__(self) -> int:
        return self._hash

    def watching(self) -> ModuleWatch:
        """What puts back what the model changes; see `ModuleWatch.retake`."""
        return self._watch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update({**values, "_lock": threading.RLock()})
        self._find_places()

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleSkeleton:
        return self  # immutable between calls

    def __str__(self) -> str:
        return type(self.module).__name__

    __repr__ = __str__


def _differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names of the buffers that are others after a call."""
    return [name for name, value in after.items() if not alike(value, before[name])]


def _kind(module: nn.Module) -> type:
    """The module's class; for a parametrized module, the original class."""
    return parametrize.type_before_parametrizations(module)


_NEW = (
    "The model's forward adds the {kind} {name!r}. What a state holds must be there from the "
    "start: register it in __init__, or run one batch through the model before init."
)

_UNSET = (
    "The model's forward assigns its buffer {name!r}, which was registered as None. A buffer in "
    'the state must be a tensor from the start: self.register_buffer("{key}", torch.zeros(...)).'
)

_ALIAS = (
    "The model's forward assigns its buffer {name!r} anew, and keeps the buffer under another name "
    "too, which goes on holding the old value. Only one of them is in the state: clone the other, "
    "or write to the buffer in place (self.buffer.copy_(new))."
)
