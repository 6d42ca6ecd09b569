"""MXFP4 experts, as gpt-oss stores them."""
