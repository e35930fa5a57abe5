"""Inside the students: what their attention heads look at, how sure they are, which of their own steps they go by."""
