"""Names, headers and numbers: what the stages know about weights, without running a model."""
