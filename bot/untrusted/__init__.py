"""What strangers wrote: read strictly, followed no further than it may lead, and shown without doing anything."""
