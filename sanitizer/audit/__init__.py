"""An audit of a sanitizer on the user's own encoder, and the searches that attack it without gradients."""

from .audit import LEAST_BUDGET, audit
from .results import AttackPoint, Audit, ConceptAudit, Count

__all__ = ["LEAST_BUDGET", "AttackPoint", "Audit", "ConceptAudit", "Count", "audit"]
