"""An OpenAI-compatible endpoint as the teacher."""

from primekd.teachers.api.engine import ApiEngine
