"""The front half: from a Torch model to a portable model and plugin specs; it may import torch eagerly."""
