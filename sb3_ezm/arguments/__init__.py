"""The arguments of the algorithm: what each may be, what it is by default, which go together, and what they become."""
