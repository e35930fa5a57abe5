"""The one exception that a user is meant to see: a sentence that names the file and the fix."""


class UserError(Exception):
    """A mistake or a condition that the user can mend. The command line prints it without a traceback."""
