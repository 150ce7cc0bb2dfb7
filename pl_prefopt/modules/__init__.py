"""One LightningModule per method family."""
