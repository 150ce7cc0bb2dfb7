"""The model that is trained: how it is described, loaded and adapted."""
