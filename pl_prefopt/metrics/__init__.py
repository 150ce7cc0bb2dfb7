"""The torchmetrics suite."""
