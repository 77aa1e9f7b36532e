"""The one error a user's mistake raises."""


class UserError(Exception):
    """A mistake the user can mend: one line that names the file, row, field or flag and what would be right.

    Commands print it without a traceback and end with exit status 2.
    """
