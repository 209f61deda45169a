"""Seeds of evaluations: each use has starts of its own, and none has those of a training with a small seed."""

#: of evaluations during training, which select the best model
EVALUATION_SEED = 10_000
#: of those afterwards, whose figures are reported
FRESH_SEED = 20_000
