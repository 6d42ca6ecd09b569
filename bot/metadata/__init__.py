"""A model card's metadata as the Hub documents it (https://github.com/huggingface/hub-docs/blob/main/modelcard.md), and what of
the inputs' cards a merged model carries on.

What people write into cards is prose, local paths and old ids; the Hub refuses a whole commit for one of them.
"""
