"""What tasks are, without their environments. Imports neither PyTorch nor Stable-Baselines3."""
