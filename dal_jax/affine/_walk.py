"""The walk over a jaxpr that the affine piece and the sweep share.

A walk interprets the equations one by one. An `Algebra` defines what a *moving* value is and what
happens at a linear operation or at a choice; the table in `_rules` defines how a primitive splits
into linear operations and choices.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dal_jax import _compat
from dal_jax._errors import NotPiecewiseAffineError

CALLS = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "named_call", "custom_jvp_call"),
        *("custom_vjp_call", "custom_vjp_call_jaxpr", "remat", "remat2", "checkpoint"),
    }
)


class Algebra(Protocol):
    """Operations of a walk on values that move with z.

    Values are either plain arrays, which do not move or move only by jumps, or the algebra's own
    moving values. The `fn` arguments are JAX functions of arrays that return a list of arrays.
    """

    def moves(self, value: Any) -> bool:
        """Return whether a value varies continuously with z."""
        ...

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of a value."""
        ...

    def begin(self, eqn: Any, ins: Sequence[Any]) -> None:
        """Prepare for an equation; called before each one is interpreted."""
        ...

    def constant(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Apply any operation to values none of which moves continuously."""
        ...

    def linear(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Apply an operation that is jointly affine in the moving values of `ins`."""
        ...

    def switch(self, fn: Callable[..., list[Any]], a: Any, b: Any, pick: Callable[..., Any]) -> Any:
        """Apply a continuous choice by the sign of a - b, with the value `fn(a, b)`.

        `pick(side, a, b)` is linear and equals `fn(a, b)` when `side` marks where a > b.
        """
        ...

    def compare(self, test: str, a: Any, b: Any) -> Any:
        """Return `a test b`, which jumps; the test is "gt", "ge", "lt", "le", "eq" or "ne"."""
        ...

    def at_value(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Evaluate `fn` at the values alone: only for functions that are constant everywhere."""
        ...

    def largest(self, x: Any) -> Any:
        """The maximum along axis 0."""
        ...

    def index_of_largest(self, x: Any) -> Any:
        """The first index of the maximum along axis 0 (a value that jumps)."""
        ...

    def running_largest(self, x: Any) -> Any:
        """The cumulative maximum along axis 0."""
        ...

    def sort(self, key: Any, carried: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Return `key` in ascending order along axis 0, and `carried` in the same order; stable."""
        ...

    def scan(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """Interpret a `lax.scan` in which a value moves."""
        ...

    def cond(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """Interpret a `lax.cond` in which a value moves."""
        ...


Rule = Callable[[Algebra, Any, Sequence[Any]], list[Any]]


def walk(algebra: Algebra, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Interpret a jaxpr in an algebra.

    Args:
        algebra: Algebra that defines moving values and the operations on them.
        jaxpr: An open jaxpr.
        consts: Values of its constant variables.
        args: Values of its input variables.

    Returns:
        The values of its output variables.

    Raises:
        NotPiecewiseAffineError: A primitive is not piecewise affine in a moving value.
    """
    env: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return _compat.literal_value(atom) if _compat.is_literal(atom) else env[atom]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        outs = _interpret(algebra, eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _interpret(algebra: Algebra, eqn: Any, ins: list[Any]) -> list[Any]:
    # Imported late: the table's rules walk themselves (reduction bodies).
    from dal_jax.affine._rules import RULES

    name = eqn.primitive.name
    if not any(algebra.moves(value) for value in ins):
        algebra.begin(eqn, ins)
        return algebra.constant(lambda *args: _compat.bind(eqn, *args), ins)
    if name in CALLS or name in ("scan", "cond"):
        try:
            return _enter(algebra, eqn, ins)
        except NotPiecewiseAffineError as error:
            # A library's own function has no line of user code: report the line that called it.
            error.line = error.line or _compat.source_line(eqn)
            raise
    if name not in RULES:
        raise refusal(eqn, "is not piecewise affine in a value that moves with z")
    algebra.begin(eqn, ins)
    return RULES[name](algebra, eqn, ins)


def _enter(algebra: Algebra, eqn: Any, ins: list[Any]) -> list[Any]:
    if eqn.primitive.name == "scan":
        return algebra.scan(eqn, ins)
    if eqn.primitive.name == "cond":
        return algebra.cond(eqn, ins)
    jaxpr, consts = _compat.inner_jaxpr(eqn)
    return walk(algebra, jaxpr, consts, ins)


def refusal(eqn: Any, why: str) -> NotPiecewiseAffineError:
    """Return the error that names a primitive and the line of user code that it came from."""
    return NotPiecewiseAffineError(eqn.primitive.name, _compat.source_line(eqn), why)
