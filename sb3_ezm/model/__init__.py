"""The world model and what it is built from: supports, action distributions, statistics of observations, networks."""
