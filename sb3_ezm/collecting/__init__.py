"""Acting: from observations to actions, to the steps of the environments, to transitions in the replay."""
