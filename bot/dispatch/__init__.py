"""The Hub bot: from an event on the Hub to a run somewhere, followed to its end. It merges nothing itself, and never imports torch.

delivery → payload → Order → store (the outbox) → dispatcher → backend → Run → Fate
"""
