"""Descriptions of tasks, without their environments. Imports neither PyTorch nor Stable-Baselines3."""
