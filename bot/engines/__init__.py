"""The ways to carry out a plan. An engine holds no policy: it matches on the op and does it."""
