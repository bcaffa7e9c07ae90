"""The tables of the registry, one noun a file.

Constraints stand here as far as both databases spell them alike; the triggers, and PostgreSQL's exclusion
constraint on class blocks, are in the migrations, and registry/guards.py names them all.
"""

from registry.models.access import BrowserSession, Token
from registry.models.base import Base
from registry.models.jobs import Attempt, Job, JobDependency, JobTask, QueueLimit, Schedule
from registry.models.labels import AliasMove, Figure, Metric, Note, Renaming, Tag
from registry.models.record import Blob, Edge, Event, Node, RegistryInfo, Series, Upload
from registry.models.requests import Request
from registry.models.results import (
    Adapter,
    Certificate,
    Composition,
    CompositionMember,
    Evaluation,
    Export,
    Run,
)
from registry.models.subjects import Backbone, ClassBlock, Dataset, Task
from registry.models.webhooks import Webhook, WebhookDelivery

__all__ = [
    "Adapter",
    "AliasMove",
    "Attempt",
    "Backbone",
    "Base",
    "Blob",
    "BrowserSession",
    "Certificate",
    "ClassBlock",
    "Composition",
    "CompositionMember",
    "Dataset",
    "Edge",
    "Evaluation",
    "Event",
    "Export",
    "Figure",
    "Job",
    "JobDependency",
    "JobTask",
    "Metric",
    "Node",
    "Note",
    "QueueLimit",
    "RegistryInfo",
    "Renaming",
    "Request",
    "Run",
    "Schedule",
    "Series",
    "Tag",
    "Task",
    "Token",
    "Upload",
    "Webhook",
    "WebhookDelivery",
]
