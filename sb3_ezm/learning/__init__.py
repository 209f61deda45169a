"""From replayed segments to a better model: targets, losses, fresh searches, gradients, the learner."""
