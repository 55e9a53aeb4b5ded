"""What is wrong with a request for attention."""


class KernelError(ValueError):
    """The request cannot be served: says what was given, what is allowed and what to do."""

    exit_status = 2
