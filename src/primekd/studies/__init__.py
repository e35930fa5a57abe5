"""The recipes: what is trained and scored in a study, its planned contrasts and its tables."""
