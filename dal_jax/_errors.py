"""Exceptions of the package: one clear line each, naming the argument, its value and what fits."""


class DalJaxError(Exception):
    """Base of every exception that dal_jax raises on purpose."""


class InputError(DalJaxError, ValueError):
    """An argument, file or option cannot be used; the message is one line."""


class CheckpointError(InputError):
    """A checkpoint or weights file is missing, damaged or of another shape."""


class RunError(DalJaxError):
    """A long run cannot go on (full disk, lost process); what is finished is kept."""


class NotPiecewiseAffineError(DalJaxError, TypeError):
    """A function is not piecewise affine in its argument; names the primitive and the line."""

    def __init__(self, primitive: str, line: str, why: str):
        super().__init__(primitive, line, why)
        self.primitive, self.line, self.why = primitive, line, why

    def __str__(self) -> str:
        return f"{self.primitive} at {self.line or 'an unknown line'} {self.why}"
