"""Tasks of the DeepMind Control Suite (dm_control). Only creating an environment needs that package."""
