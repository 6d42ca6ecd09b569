"""A Hugging Face Hub in a folder: the API that the real client needs, for demos, dry runs and tests."""

from .deliveries import WebhookDelivery
from .faults import Fault, Faults
from .server import DevHub

__all__ = ["WebhookDelivery", "DevHub", "Fault", "Faults"]
