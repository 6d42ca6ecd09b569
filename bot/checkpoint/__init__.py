"""What a checkpoint is: headers, shards, and how its tensors are called. No model code runs."""
