"""The `prefopt` command."""
