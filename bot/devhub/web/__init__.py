"""The HTTP face of the local Hub: routes over the store."""
