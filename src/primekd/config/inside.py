"""What `primekd analyse` looks at inside the students."""

from pydantic import Field

from primekd.config.section import Positive, Section


class InsideConfig(Section):
    """Attention and confidence are measured on the first `items` test items (all of them if there are fewer), of the
    control and of the students of `arms` (all if left out). On the first `attributed_items` with two steps at least
    the control, the unprimed arm's student and the first planned arm's are asked which steps their answer hangs on,
    over `orders` random orders of them, forwards and backwards. `map_tokens` of one prompt are kept to look at.
    """

    items: int = Field(100, ge=2)
    arms: tuple[str, ...] | None = None
    attributed_items: int = Field(4, ge=0)
    orders: Positive = 4
    map_tokens: int = Field(40, ge=3, le=64)
