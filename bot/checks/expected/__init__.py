"""What must be there: the merged checkpoint that base and adapter demand, derived by the verifier's own rules."""
