"""Functions with derivatives of their own that compilers and torch.func know.

An operator of ``torch.library`` can be compiled and exported, but knows
neither ``torch.func`` nor forward mode; with ``torch.autograd.Function`` it is
the other way round. An :class:`Operator` is both, from one set of formulas.

In neither does torch know tangents of tangents: it takes them for zero. See
:func:`mmplugins.ops.backends.has_tangent`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

# Since torch 2.4; without, a compiler breaks its graph where one is called.
_REGISTERS = hasattr(torch.library, 'custom_op')

Result = Tensor | tuple[Tensor, ...]


def is_compiling() -> bool:
    """Whether a compiler follows what is done, and knows operators."""
    return _REGISTERS and torch.compiler.is_compiling()


def register(
    function: Callable[..., Result], fake: Callable[..., Result]
) -> Callable[..., Result]:
    """Make a function an operator that compilers leave as it is.

    Args:
        function (Callable[..., Result]): The function, annotated as
            ``torch.library.custom_op`` wants it. Its results are new memory.
        fake (Callable[..., Result]): Empty results for the same arguments,
            laid out alike.

    Returns:
        Callable[..., Result]: The operator, in ``torch.ops.mmplugins`` under
        the function's name without leading underscores; the function itself
        where torch does not know of operators.
    """
    if not _REGISTERS:
        return function
    name = f'mmplugins::{function.__name__.lstrip("_")}'
    operator = torch.library.custom_op(name, function, mutates_args=())
    operator.register_fake(fake)

    def one_by_one(
        info: Any, dims: Sequence[int | None], *args: Any
    ) -> tuple[Result, Any]:
        outs = [
            operator(
                *(
                    x.select(dim, i) if isinstance(dim, int) else x
                    for x, dim in zip(args, dims)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        return tuple(map(torch.stack, zip(*outs))), (0,) * len(outs[0])

    if hasattr(operator, 'register_vmap'):  # torch 2.5
        operator.register_vmap(one_by_one)
    return operator


class Operator:
    """A function of tensors, differentiable as often as its formulas are.

    Args:
        forward (Callable[..., Tensor]): The function.
        fake (Callable[..., Tensor], optional): As of :func:`register`, which
            then gets the function. Without, compilers look into it and take
            the derivatives that they find there. Defaults to None.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        fake: Callable[..., Tensor] | None = None,
    ) -> None:
        self._name = forward.__name__.lstrip('_')
        self._forward = register(forward, fake) if fake else forward
        self._function: type[Function] | None = None

    def differentiate(
        self,
        gradients: Callable[..., Sequence[Tensor | None]],
        tangent: Callable[..., Tensor],
    ) -> None:
        """Set its derivatives, made of functions that have theirs.

        Args:
            gradients (Callable): ``(grad, needs, *args)`` to gradients of the
                leading arguments, as many as are tensors; ``needs`` says of
                each argument whether it wants one.
            tangent (Callable): ``(tangents, *args)`` to the result's tangent;
                one of a tensor that does not move is zero, one of what is not
                a tensor None.
        """

        def setup_context(
            ctx: FunctionCtx, inputs: tuple, output: Tensor
        ) -> None:
            tensors = [x for x in inputs if isinstance(x, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)
            ctx.others = [
                None if isinstance(x, Tensor) else (x,) for x in inputs
            ]

        def arguments(ctx: FunctionCtx) -> list:
            tensors = iter(ctx.saved_tensors)
            return [x[0] if x else next(tensors) for x in ctx.others]

        def backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
            needs, args = ctx.needs_input_grad, arguments(ctx)
            found = tuple(gradients(grad, needs, *args))
            return *found, *[None] * (len(args) - len(found))

        def jvp(ctx: FunctionCtx, *tangents: Tensor | None) -> Tensor:
            return tangent(tangents, *arguments(ctx))

        forward = self._forward
        if hasattr(forward, 'register_autograd'):
            forward.register_autograd(backward, setup_context=setup_context)
        self._function = type(
            self._name,
            (Function,),
            dict(
                generate_vmap_rule=True,
                forward=staticmethod(lambda *args: forward(*args)),
                setup_context=staticmethod(setup_context),
                backward=staticmethod(backward),
                jvp=staticmethod(jvp),
            ),
        )

    def __call__(self, *args: Any) -> Tensor:
        """Call the function; arguments as they are of its signature."""
        # Compilers refuse functions with a forward mode.
        if is_compiling():
            return self._forward(*args)
        return self._function.apply(*args)


def bilinear(operator: Operator) -> Callable[..., Tensor]:
    """Tangent of an operator that is linear in each of two arguments."""

    def tangent(
        tangents: Sequence[Tensor], first: Tensor, second: Tensor, *how: Any
    ) -> Tensor:
        by_first = operator(tangents[0], second, *how)
        return by_first + operator(first, tangents[1], *how)

    return tangent
