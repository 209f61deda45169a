"""The parts of ``python -m experiments.study``: one module for each study, and what they share."""
