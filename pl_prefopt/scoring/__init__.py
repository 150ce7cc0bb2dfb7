"""Turning token trees into log-probs of responses: the only place that knows a model's inputs."""
