"""Tasks that EnvPool simulates: Meta-World, MuJoCo Playground, MyoSuite and others. Only making an environment needs it."""
