"""The one exception of this package."""


class SanitizerError(ValueError):
    """A refusal that the user can act on.

    The message is one line that says what was refused, what was expected, what was found and what to do.
    The command line prints it without a traceback; the nodes show it as it is.
    """
