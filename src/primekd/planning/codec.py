"""The codec that a profile's signals are kept with, as far as it is known before the teacher is loaded."""

from primekd.config import Profile, SignalsConfig
from primekd.foundation.errors import UserError
from primekd.signals import Codec, make_codec


def find_codec(profile: Profile, signals: SignalsConfig | None = None) -> tuple[Codec | None, str | None]:
    """The codec of a profile (or of other signal settings in it); None with the reason where its engine offers less."""
    try:
        return make_codec(signals or profile.signals, profile.teacher.offers), None
    except UserError as error:
        return None, str(error)
