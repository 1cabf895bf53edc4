"""What a user's mistake is reported with."""


class InputError(ValueError):
    """Something in the input is wrong; the message is one sentence that says what, and what to do."""
