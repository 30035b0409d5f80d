"""What a user can put right: exit code 2, one message, nothing written."""


class UsageError(ValueError):
    """A name, setting, file or URL that cannot be used: says what was given, what is allowed and what to do."""
