"""Language models block by block: one transformer block, its inputs and its outputs; prune, mend, go on."""

from .allocation import ERK, OWL, Sensitivity
from .block import BlockOptions, BlockResult, WeightResult, outlier_share, prune_block
from .budget import Machine, StreamPlan
from .calibration import calibration_tokens
from .checkpoint import Checkpoint, open_checkpoint
from .distillation import Distilled, TransformerDistillation
from .in_memory import prune_blocks
from .lora import LowRank, add_lora
from .packing import PackedTexts, pack
from .padded import PaddedModel, TextSplit, encode_texts, encode_words
from .perplexity import Protocol, perplexity, windows
from .processes import Processes
from .residual import Stream, find_stream
from .rotated import load_rotated, save_rotated
from .sparsify import SparsifiedLanguage, sparsify_language
from .stack import BlockCall, calls_of, find_blocks
from .streaming import Streamed, stream
from .structure import Narrowed, Structure, cut_checkpoint
from .tokenizers import needed_ids, smaller_tokenizer, token_counts
from .tokens import TokenSplit, token_loss
from .trainer import ZeroKeeper, trainer_callback

__all__ = [
    "sparsify_language",
    "SparsifiedLanguage",
    "prune_blocks",
    "OWL",
    "ERK",
    "Sensitivity",
    "Processes",
    "stream",
    "cut_checkpoint",
    "Structure",
    "Narrowed",
    "Machine",
    "Streamed",
    "StreamPlan",
    "calibration_tokens",
    "Checkpoint",
    "open_checkpoint",
    "perplexity",
    "Protocol",
    "windows",
    "find_stream",
    "Stream",
    "save_rotated",
    "load_rotated",
    "TokenSplit",
    "token_loss",
    "prune_block",
    "outlier_share",
    "BlockOptions",
    "BlockResult",
    "WeightResult",
    "find_blocks",
    "calls_of",
    "BlockCall",
    "PaddedModel",
    "TextSplit",
    "encode_texts",
    "encode_words",
    "token_counts",
    "needed_ids",
    "smaller_tokenizer",
    "pack",
    "PackedTexts",
    "Distilled",
    "TransformerDistillation",
    "add_lora",
    "LowRank",
    "trainer_callback",
    "ZeroKeeper",
]
