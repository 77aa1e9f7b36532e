"""The one error a user's mistake raises, and the command line that raises it."""

import argparse
from typing import NoReturn


class UserError(Exception):
    """A mistake the user can mend: one line that names the file, row, field or flag and what would be right.

    Commands print it without a traceback and end with exit status 2.
    """


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is a ``UserError`` instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint, with where help is."""
        raise UserError(f"{message}; see {self.prog} --help")
