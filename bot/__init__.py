"""adapter-merge: turn a fine-tuned adapter into a published, proven model."""

__version__ = "0.1.0"
SOURCE = "https://github.com/adapter-merge/adapter-merge"  # where the code lives; pyproject.toml has its pages
