"""Measures of language tasks on plain texts, tags and vectors: what a model said against what is right.

BLEU is in `prunus.evaluation.translation`, perplexity in `prunus.language`.
"""

from .answers import answers, exact_match, token_f1
from .association import association_test, effect_size, permutation_p, seat
from .harness import harness
from .overlap import rouge, rouge_l, rouge_lsum, rouge_n, word_error_rate
from .similarity import matthews, mean_pooled, pearson, similarity_correlation, spearman
from .stereotypes import Likelihoods, crows_pairs, masked_likelihood, shared_positions, stereoset
from .tagging import Entity, entities, entity_f1

__all__ = [
    "Entity",
    "entities",
    "entity_f1",
    "answers",
    "exact_match",
    "token_f1",
    "rouge",
    "rouge_n",
    "rouge_l",
    "rouge_lsum",
    "word_error_rate",
    "similarity_correlation",
    "mean_pooled",
    "pearson",
    "spearman",
    "matthews",
    "association_test",
    "effect_size",
    "permutation_p",
    "seat",
    "crows_pairs",
    "masked_likelihood",
    "shared_positions",
    "stereoset",
    "Likelihoods",
    "harness",
]
