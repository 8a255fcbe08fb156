"""``grad``: the gradients of a loss function."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Generator
from operator import attrgetter
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from fnloop._torch.ancestry import edge_of, held, made_through, origins
from fnloop._torch.autograd import NoGradientError, Tape, gradients, require_grad
from fnloop._torch.constants import constant
from fnloop._torch.tracing import transformed
from fnloop._torch.transformable import transformable
from fnloop.names.keywords import explained
from fnloop.optim.patterns import Where
from fnloop.stages.base import GradStage
from fnloop.stages.chosen_parameters import Choice, Frozen, Only, as_frozen, as_only, told
from fnloop.stages.closure import closed_over
from fnloop.stages.functions import as_loss, takes_state
from fnloop.stages.loss_result import LossResult, explain, read_loss
from fnloop.trees.nodes import static, tree, tree_leaves
from fnloop.trees.show import short
from fnloop.values.close_look import Unwritten, is_looked_at
from fnloop.values.context import no_casting
from fnloop.values.gathered import Gathering
from fnloop.values.grads import Grads
from fnloop.values.randomness import stream
from fnloop.values.sharing import Sharing
from fnloop.values.slices import Slices
from fnloop.values.stacked import check_single
from fnloop.values.state import State

_NOTHING = contextlib.nullcontext()


@tree
class Grad(GradStage):
    """The stage that `grad` makes.

    Attributes:
        loss: ``(model, batch) -> loss``; a function, or a tree with ``__call__``.
        only: Which parameters it differentiates with respect to; None for all that are trained.
        frozen: Which of them not, perhaps by phases.
    """

    label: ClassVar[str] = "grad"
    loss: Any
    only: Where | None = static(default=None)
    frozen: Any = static(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", as_loss(self.loss, "loss(model, batch)"))
        if getattr(self.loss, "only_evaluates", False):
            raise TypeError(_EVALUATES.format(loss=short(self.loss)))
        if self.only is not None:
            object.__setattr__(self, "only", as_only(self.only))
        object.__setattr__(self, "frozen", as_frozen(self.frozen))

    def trained(self, state: State) -> tuple[str, ...]:
        """The parameters that it differentiates with respect to in some phase."""
        if self.only is None and self.frozen is None:
            return state.skeleton.trainable
        return self._choice(state).trained

    def trained_now(self, state: State) -> tuple[str, ...]:
        return self.trained(state) if self.frozen is None else self._choice(state).now(state)[0]

    def _choice(self, state: State) -> Choice:
        skeleton, choice = self.__dict__.get("_chosen", (None, None))
        if skeleton is not state.skeleton:  # to match names takes time
            choice = Choice(self.only, self.frozen, state)
            self.__dict__["_chosen"] = (state.skeleton, choice)
        return choice

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(INFERENCE)
        if not isinstance(state, State):
            raise TypeError(
                "A step takes a state, from step.init(model), and a batch: step(state, batch); "
                f"got {type(state).__name__} as the state."
            )
        if state.step.ndim:
            check_single(state, "A step")
        names, frozen = self.trained(state), ()
        if self.frozen is not None:
            names, frozen = self._choice(state).now(state)
        trained = state.params.select(names)
        divided = state.params.layout.mesh is not None
        scale, counts, norms = state.context.scale, state.context.counts, state.context.norms
        alone = not divided and norms is None and state.context.modules is None

        def compute(tape: Tape) -> tuple[Any, dict[str, Tensor]]:
            params = dict(zip(trained.names, tape.leaves, strict=True))
            if trained is not state.params:
                others = zip(state.params.names, state.params.storages, strict=True)
                params = {**dict(others if divided else state.params.items()), **params}
            placed = self._placed(state, params, tape) if divided else None
            if norms is not None and (tape.kept or transformed()):
                raise ValueError(_SYNCHRONIZED.format(loss=self.loss))

            def run(model: Any) -> tuple[Any, ...]:
                # The backward pass runs here too: activation checkpointing recomputes the forward
                # pass in it, which needs this model.
                with _NOTHING if alone and not tape.kept else _around(state, model, placed, tape):
                    result = self._run(state, model, x, tape, placed)
                    if result.loss is None and (norms is not None or placed is not None):
                        raise ValueError(_LONE_SKIP.format(loss=self.loss))
                    if result.loss is None or not state.context.differentiates:
                        return trained.select(()), result.weight, result.metrics
                    seed = _seed(result, scale)
                    if norms is not None:
                        seed = seed * norms.share(result.weight * counts).to(seed.dtype)
                    elif placed is not None:
                        placed.weigh(result.weight * counts)
                    try:
                        with no_casting(state.step.device):
                            found = tape.backward(result.loss, seed)
                    except RuntimeError as error:
                        if "use_reentrant" in str(error):
                            raise RuntimeError(_REENTRANT.format(loss=self.loss)) from error
                        raise
                    if placed is None and not tape.kept and not transformed():
                        self._look_for_untrained(result.loss)
                    mean = trained.gradients(found)
                    if mean.layout is not trained.layout:
                        without = [name for name in trained.names if name not in mean]
                        self._check_unreached(state, result.loss, without)
                return mean, result.weight, result.metrics

            standing = params if placed is None else placed.params
            return state.skeleton.call(run, standing, state.buffers, True, self.loss, frozen)

        unwritten = Unwritten(state.params)
        try:
            with stream(state, "loss"):
                (mean, weight, metrics), buffers = gradients(
                    compute, trained.peek(), _is_recorded(self, state, x), trained.kinds.quick
                )
        except NoGradientError:
            raise ValueError(_NO_GRADIENT.format(loss=self.loss)) from None
        unwritten.check(self.loss)
        mean = mean.wide()
        if scale is not None and mean:
            mean = mean.scale(1 / scale)
        finite = constant(True, torch.bool, weight.device)
        if norms is not None:
            norms.note(buffers)
        if buffers:
            state = state.replace(buffers=state.buffers.like(buffers))
        return state, Grads(mean, weight, finite, metrics)

    def _look_for_untrained(self, loss: Tensor) -> None:
        """In some calls, warn of parameters beside the model that the loss was computed from.

        The leaves of the tape are no `nn.Parameter`, and nobody holds what a loss makes itself.
        """
        calls = self.__dict__["_losses"] = self.__dict__.get("_losses", 0) + 1
        if not is_looked_at(calls) or "_told" in self.__dict__:
            return
        leaves = held(origins([edge_of(loss)], frozenset())[1])
        untrained = [leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)]
        if untrained:
            self.__dict__["_told"] = True
            shapes = ", ".join([str(tuple(leaf.shape)) for leaf in untrained[:3]])
            more = ", ..." if len(untrained) > 3 else ""
            told = _UNTRAINED.format(loss=short(self.loss), shapes=shapes + more)
            warnings.warn(told, stacklevel=2)

    def _check_unreached(self, state: State, loss: Tensor, without: list[str]) -> None:
        """Refuse checkpoints that may have lost gradients, where parameters have none.

        To walk through the graph takes time, so only some of such calls are looked at.
        """
        skeleton, calls = self.__dict__.get("_unreached", (None, 0))
        calls = calls + 1 if skeleton is state.skeleton else 1
        self.__dict__["_unreached"] = (state.skeleton, calls)
        if is_looked_at(calls) and made_through(loss, "CheckpointFunctionBackward"):
            told = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
            raise RuntimeError(
                f"{_REENTRANT.format(loss=self.loss)} Without a gradient: {told}. What the loss "
                "does not use may be frozen instead: requires_grad_(False)."
            )

    def _placed(self, state: State, pieces: dict[str, Tensor], tape: Tape) -> Gathering | Sharing:
        """What a model is given for parameters that are divided among ranks."""
        if tape.kept or transformed():
            raise ValueError(_DIVIDED.format(loss=self.loss))
        layout: Any = state.params.layout
        if isinstance(layout, Slices):
            return Sharing(layout, pieces)
        return Gathering(layout, pieces, self.loss)

    def _run(
        self, state: State, model: Any, batch: Any, tape: Tape, placed: Gathering | Sharing | None
    ) -> LossResult:
        arguments = (model, batch, state) if self._takes_state else (model, batch)
        try:
            with state.context.casting(state.step.device):
                result = self.loss(*arguments)
        except Exception as error:
            explain(error, self.loss, state, batch)
            raise
        if placed is not None:
            result = placed.result(result)
        return read_loss(result, batch, self.loss, detach=not tape.kept)

    @functools.cached_property
    def _takes_state(self) -> bool:
        return takes_state(self.loss)

    @functools.cached_property
    def _closed_over(self) -> tuple[Tensor, ...]:
        return closed_over(self.loss)

    def describe(self) -> str:
        given = [("only", self.only), ("frozen", self.frozen)]
        parts = [f"{name}={told(where)}" for name, where in given if where is not None]
        return f"grad({', '.join(parts)})" if parts else "grad"

    def lines(self) -> list[str]:
        return [short(self.loss), self.describe()]


@contextlib.contextmanager
def _around(
    state: State, model: Any, placed: Gathering | Sharing | None, tape: Tape
) -> Generator[None]:
    """What is on while the model runs: its divided parameters, shared norms, its precisions."""
    context = state.context
    with contextlib.ExitStack() as entered:
        if tape.kept and not transformed():  # under a transform, `stream` sees to it
            entered.enter_context(transformable(twice=True))
        if placed is not None:
            entered.enter_context(placed.running())
        if context.norms is not None:
            entered.enter_context(context.norms.running(model, context.counts))
        if context.modules is not None:
            entered.enter_context(context.modules.running(model, state.step.device))
        yield


@overload
def grad(
    loss: Callable[..., Any], only: Only | None = None, frozen: Frozen | None = None
) -> Grad: ...
@overload
def grad(
    *, only: Only | None = None, frozen: Frozen | None = None
) -> Callable[[Callable[..., Any]], Grad]: ...
@explained
def grad(loss: Any = ..., only: Any = None, frozen: Any = None) -> Any:
    """Gradients of a loss: the first stage of a pipeline.

    The loss is called as ``loss(model, batch)``, with the model in training mode, or as
    ``loss(model, batch, state)`` if it takes three arguments. It returns the mean over the batch's
    examples as a scalar, or ``fl.Mean(total, weight)``, or a tuple of either with a dict of
    metrics. Parameters that do not require gradients, or that the loss does not use, get no
    gradient and are not updated.

    With `only`, it differentiates with respect to some of the parameters, and the stages behind it
    own just those: the optimizer has memory for no others, and these keep their bits. A pipe gives
    it the loss: ``fl.pipe(loss, fl.grad(only="D.*"), ...)``.

    What is `frozen` keeps its bits: no gradient is computed with respect to it, nor through layers
    below which all is frozen. A module all of whose parameters are frozen runs in evaluation mode,
    with all modules in it: BatchNorm normalizes by its running statistics and leaves them alone,
    Dropout is off. With ``frozen=fl.schedules.by_epoch({0: "backbone", 3: "backbone.0", 5: None})``
    it thaws as the run goes on; the optimizer's memory is made for all that is trained at some
    time, and what is frozen keeps its own.

    Args:
        loss: A function, or a tree (`fl.tree`) with ``__call__``.
        only: A pattern or several, or a function ``(name, parameter) -> bool``. A pattern is a
            parameter's name, a module's name, or a glob (``"*.bias"``).
        frozen: Patterns or a function as for `only`, of what is frozen; or, by phases of the run,
            `fl.schedules.by_epoch` or `fl.schedules.by_step` of them. A compiled step has a graph
            for each phase.

    Raises:
        TypeError: `loss` is no function of a model and a batch; or, at the call, it returns
            something else; or `only` or `frozen` is no pattern.
        ValueError: At the call, the loss depends on no parameter that requires gradients, or is
            not a scalar; or a pattern of `only` or `frozen` fits no parameter; or all is frozen.
        RuntimeError: It is called inside ``torch.inference_mode()``, or the model writes to a
            parameter in place, or is checkpointed with ``use_reentrant=True``.

    >>> step = grad(lambda model, batch: model(batch).square().mean())
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> state, grads = step(state, torch.ones(3, 2))
    >>> grads.mean["weight"].shape, float(grads.weight)
    (torch.Size([1, 2]), 3.0)

    >>> step = grad(lambda model, batch: model(batch).mean(), only="bias")
    >>> dict(step(state, torch.ones(3, 2))[1].mean)
    {'bias': tensor([1.])}

    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    >>> step = grad(lambda model, batch: model(batch).mean(), frozen="0")
    >>> state = step.init(model)
    >>> new, grads = step(state, torch.ones(3, 2))
    >>> list(grads.mean), new.buffers == state.buffers
    (['1.weight', '1.bias'], True)
    """
    if loss is ...:
        only = None if only is None else as_only(only)
        return functools.partial(Grad, only=only, frozen=as_frozen(frozen))
    return Grad(loss, only, frozen)


_NO_GRADIENT = (
    "The loss {loss} does not depend on any parameter that requires gradients. The usual causes: "
    "the loss was computed under torch.no_grad(), or detached (.item(), .numpy()); it uses another "
    "model than its argument; its first layers are checkpointed with use_reentrant=True; all "
    "parameters are frozen; or grad(only=...) chooses others than it uses."
)

_EVALUATES = (
    "fl.grad was given {loss}, which is for fl.evaluate, fl.validate and fl.predict. In a pipeline "
    "the precision stands behind fl.grad, where it has the backward pass and a loss scale, too: "
    'fl.pipe(loss, fl.grad, fl.amp("bf16"), ...).'
)

_REENTRANT = (
    "The model of the loss {loss} is checkpointed with use_reentrant=True, which works with "
    "loss.backward() only; a step asks for the gradients of the parameters that it is given, and "
    "those inside of the checkpoint would get none. Set "
    "use_reentrant=False: checkpoint(layer, x, use_reentrant=False), or "
    "model.gradient_checkpointing_enable({{'use_reentrant': False}}) in transformers."
)


_UNTRAINED = (
    "The loss {loss} was computed from parameters (nn.Parameter) that require gradients and are no "
    "parameters of the model that the step trains, of the shapes {shapes}: they are not trained. "
    "If they are to be (a criterion's class centers, weights of the parts of a loss), make what "
    "holds them a submodule of the model. If not (a teacher), call it under torch.no_grad(), or "
    "set requires_grad_(False)."
)

_DIVIDED = (
    "The step with the loss {loss} has ranks that exchange while the model runs, as their plan "
    'divides its parameters, and is vmapped or differentiated. A population takes mode="loop" (in '
    'fl.ensemble, fl.sweep), or a step that is sharded with the plan "replicate" or "zero2". To '
    "differentiate a step, leave the shard out."
)

_SYNCHRONIZED = (
    "The step with the loss {loss} has batch norms that are synchronized over ranks, and is "
    'vmapped or differentiated. A population takes mode="loop" (in fl.ensemble, fl.sweep), or a '
    "step that is sharded without sync_batchnorm=True. To differentiate a step, leave the shard "
    "out."
)


_LONE_SKIP = (
    "The loss {loss} skips a batch by fl.Mean(0, 0), and the ranks compute its model together (a "
    "plan that divides parameters, or synchronized batch norms): the others would wait for this "
    "one. Give the loss that was computed a weight of zero: fl.Mean(0 * loss, 0)."
)


INFERENCE = (
    "A training step cannot run inside torch.inference_mode(), which has no gradients. Leave that "
    "block, or use torch.no_grad() instead: a step runs inside it as usual."
)


def _is_recorded(stage: Grad, state: State, batch: Any) -> bool:
    """Whether autograd records what is computed from what the stage is given, or closes over."""
    if not torch.is_grad_enabled():
        return False
    if not (state.params.plain and state.buffers.plain):
        return True
    if stage._takes_state and require_grad(tree_leaves(state.slots)):
        return True
    if stage._closed_over and require_grad(stage._closed_over):
        return True
    if type(batch) is tuple and set(map(type, batch)) == _TENSORS:
        return any(map(_REQUIRES_GRAD, batch))
    return require_grad(tree_leaves(batch))


_TENSORS, _REQUIRES_GRAD = {Tensor}, attrgetter("requires_grad")


def _seed(result: LossResult, scale: Tensor | None) -> Tensor:
    """The gradient to start the backward pass with, so that it gives the gradient of the mean loss.

    A weighted sum is divided by its weight here; with a loss scale, both are applied at once.
    """
    loss = result.loss
    assert loss is not None
    if result.examples is not None:
        return constant(1.0, loss.dtype, loss.device) if scale is None else scale.to(loss.dtype)
    weight = result.weight.double()
    divisor = torch.where(weight > 0, weight, torch.ones_like(weight))
    return ((1.0 if scale is None else scale) / divisor).to(loss.dtype)
