"""The verbs. Nothing but parsing and calls; heavy imports wait until a verb needs them. What a verb does is in the
package that its function calls."""

from primekd.cli import stages, answers, study, pages  # noqa: F401, I001 - each registers its verbs, in the order of the help
from primekd.cli.common import app
