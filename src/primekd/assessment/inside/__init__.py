"""Inside the students: what their attention heads look at, how sure they are, which of their own steps they go by."""

from pathlib import Path

from primekd.config import Profile

MAPS = "maps.safetensors"
FOLDER = "inside"  # of runs/<profile>/, and of its logs


def inside_folder(profile: Profile) -> Path:
    """Where the tables lie, beside the logs that they go with."""
    return profile.logs / FOLDER
