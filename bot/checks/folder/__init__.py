"""The merged folder's files: whole, nothing stale, nothing lost, config and tokenizer as they must be."""
