"""The front half: from a Torch model to a portable model and plugin specs.  The only part that imports torch eagerly."""
