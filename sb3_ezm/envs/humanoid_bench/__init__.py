"""The real HumanoidBench (arXiv 2403.10506), an optional package: task facts, loading, environments."""
