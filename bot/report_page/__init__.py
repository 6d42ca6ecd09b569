"""A report as people look at it: pictures and a page, drawn from verification.json alone."""
