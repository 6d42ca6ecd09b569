"""The demo: a real small model, an adapter one can see working, and a local Hub to publish to."""
