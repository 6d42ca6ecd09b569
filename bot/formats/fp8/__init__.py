"""FP8 forms: read, and written in the base's own form or with a scale for each output channel."""
