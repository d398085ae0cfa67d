"""Plan, model -> smaller model: one writer, one verifier, and the store that keeps both."""

from __future__ import annotations

from .bypass import Bypass
from .cut import apply, plans_of
from .experts import PrunedExperts, prune_experts
from .files import check_writable, read_weights
from .gradual import GradualPruner
from .layers import follow
from .leave_out import leave_out_failing
from .prune import Pruned, prune
from .prune_options import PruneOptions
from .report import Report, Width, report_of
from .sensitivity import Sensitivity, scan_sensitivity
from .serialise import from_json, to_json
from .sparsified import LayerSparsity, Sparsified, SparsityReport
from .sparsify import SparsifyOptions, sparsify
from .store import Manifest, load, read_manifest, read_plans, save
from .verify import Verified
from .vocabulary import PrunedVocabulary, prune_vocabulary, token_map

__all__ = [
    "apply",
    "Bypass",
    "prune",
    "Pruned",
    "PruneOptions",
    "sparsify",
    "GradualPruner",
    "Sensitivity",
    "scan_sensitivity",
    "Sparsified",
    "SparsifyOptions",
    "SparsityReport",
    "LayerSparsity",
    "Report",
    "PrunedExperts",
    "prune_experts",
    "PrunedVocabulary",
    "prune_vocabulary",
    "token_map",
    "Verified",
    "Width",
    "report_of",
    "follow",
    "leave_out_failing",
    "plans_of",
    "save",
    "load",
    "Manifest",
    "read_manifest",
    "read_plans",
    "read_weights",
    "check_writable",
    "to_json",
    "from_json",
]
