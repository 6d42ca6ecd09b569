"""Running the models: base with adapter, merged, and controls, in processes of their own."""
