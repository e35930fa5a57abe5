"""People's decisions on answers: the file that keeps them, the cases to look at, a sitting at terminal or notebook."""
