"""The catalog while the gateway runs: who may ask for what is read, changed and logged here."""

from llmg.services.admin.following import Following
from llmg.services.admin.service import Admin
from llmg.services.admin.values import Changes, Issued, Key, Level, Page, Upstream, UpstreamChange

__all__ = ["Admin", "Changes", "Following", "Issued", "Key", "Level", "Page", "Upstream", "UpstreamChange"]
