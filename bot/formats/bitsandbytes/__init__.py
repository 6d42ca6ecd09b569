"""bitsandbytes' forms (nf4, fp4, int8): read, written, and simulated."""
