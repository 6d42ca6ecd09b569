"""An adapter, read: which methods there are, what its keys and config say, and how several become one."""
