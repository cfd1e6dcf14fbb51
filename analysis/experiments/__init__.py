"""What is run: the paper's experiments and their counterparts in the emoji world, as data."""
