"""Profiles, one YAML file each, and arms: read into frozen models that refuse what they do not know.

profile.py holds the whole of a profile; arms.py says which arms it runs and what each of them is.

A field's meaning stands beside it; configs/*.yaml show complete examples."""

# ruff: noqa: I001 - a name a line would make most of a page
from primekd.config.arm import CONTROL, CORPUS, FEW_SHOT, NO_STUDENTS, NONE, OWN, PRIMED, SHUFFLED, TEACHER, UNTRAINED
from primekd.config.arm import WORDS, Arm, split_seed
from primekd.config.arms import arms_of, default_arms, get_arm, how_to_train, load_arms, of_role, reads_text
from primekd.config.arms import refuse_gold, unprimed
from primekd.config.data import DataConfig
from primekd.config.hardware import HardwareConfig
from primekd.config.profile import ANSWER_SETS, SAMPLES, TRANSFER, PlannedContrasts, Profile, load_profile
from primekd.config.profile import profile_files, profile_names, refuse_namesake
from primekd.config.section import is_name
from primekd.config.student import Architecture, LoraSettings, LossConfig, PrepareConfig, StudentConfig, TrainConfig
from primekd.config.teacher import ApiConfig, ExLlamaConfig, SignalsConfig, TeacherConfig, VllmConfig
from primekd.config.text import TextConfig
