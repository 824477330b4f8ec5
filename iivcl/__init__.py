"""Inter-intra video contrastive learning in PyTorch, as small parts for your own training loop."""

__version__ = "0.1.0"
