"""A Hugging Face Hub in a folder: the API that the real client needs, for demos, dry runs and tests."""

from .faults import Fault, Faults
from .server import DevHub
from .webhooks import Delivery

__all__ = ["Delivery", "DevHub", "Fault", "Faults"]
