"""The merger's arithmetic: the exact result, rounded once. The verifier has arithmetic of its own."""
