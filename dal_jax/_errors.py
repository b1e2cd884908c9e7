"""Exceptions of the package, each with one line that names argument, value and expectation."""


class DalJaxError(Exception):
    """Base of every exception that dal_jax raises on purpose.

    Example:
        >>> from dal_jax.noise import iid
        >>> try:
        ...     iid(-1.0)
        ... except DalJaxError as error:
        ...     print(type(error).__name__)
        InputError
    """


class InputError(DalJaxError, ValueError):
    """An argument, file or option cannot be used; the message is one line.

    Example:
        >>> from dal_jax.noise import iid
        >>> try:
        ...     iid(-1.0)
        ... except InputError as error:
        ...     print(error)
        sigma: got -1.0, expected a positive, finite standard deviation
    """


class CheckpointError(InputError):
    """A checkpoint or weights file is missing, damaged or of another shape.

    Example:
        >>> from dal_jax import load_localizer
        >>> try:
        ...     load_localizer("no such folder")
        ... except CheckpointError as error:
        ...     print("no such folder" in str(error))
        True
    """


class RunError(DalJaxError):
    """A long run cannot continue, for lack of disk space or of a process; finished tests are kept.

    Example:
        >>> try:
        ...     raise RunError("runs/a: no space is left on the disk")
        ... except DalJaxError as error:
        ...     print(error)
        runs/a: no space is left on the disk
    """


class NotPiecewiseAffineError(DalJaxError, TypeError):
    """A function is not piecewise affine in its argument; the error names primitive and line.

    Args:
        primitive: Name of the JAX primitive, also an attribute, like the others.
        line: File and line of its source, "" if unknown.
        why: Reason in words.

    Example:
        >>> from jax.numpy import exp
        >>> from dal_jax import affine_piece
        >>> try:
        ...     affine_piece(exp, 0.0)
        ... except NotPiecewiseAffineError as error:
        ...     print(error.primitive)
        exp
    """

    def __init__(self, primitive: str, line: str, why: str):
        super().__init__(primitive, line, why)
        self.primitive, self.line, self.why = primitive, line, why

    def __str__(self) -> str:
        return f"{self.primitive} at {self.line or 'an unknown line'} {self.why}"
