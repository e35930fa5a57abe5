"""Profiles, one YAML file each, and arms: read into frozen models that refuse what they do not know.

profile.py holds the whole of a profile; arms.py says which arms it runs and what each of them is.

A field's meaning stands beside it; configs/*.yaml show complete examples.
"""

from primekd.config.arm import CONTROL, CORPUS, NO_STUDENTS, NONE, OWN, PRIMED, TEACHER, WORDS, Arm, split_seed
from primekd.config.arms import arms_of, get_arm, how_to_train, load_arms, of_role, refuse_gold, unprimed
from primekd.config.data import DataConfig
from primekd.config.hardware import HardwareConfig
from primekd.config.profile import ANSWER_SETS, Profile, load_profile, profile_files, profile_names
from primekd.config.section import is_name
from primekd.config.student import Architecture, LoraSettings, LossConfig, PrepareConfig, StudentConfig, TrainConfig
from primekd.config.teacher import ApiConfig, ExLlamaConfig, SignalsConfig, TeacherConfig, VllmConfig
from primekd.config.text import TextConfig
