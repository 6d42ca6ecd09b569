"""How the verifier reads: checkpoints, quantised forms, and a model's structure. No code of the merger's."""
