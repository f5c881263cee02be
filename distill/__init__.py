"""Knowledge distillation with learned labels, for image classification."""

__version__ = "0.1.0"
