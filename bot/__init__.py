"""adapter-merge: turn a fine-tuned adapter into a published, proven model."""

__version__ = "0.1.0"
