"""Every method of the classic field and of language models is listed, works, and can be called by its name."""

from __future__ import annotations

import json

import pytest

from prunus import methods
from prunus.cli import main
from prunus.criteria import criterion_of

SINGLE_WEIGHTS = """
magnitude_iterative agp_cubic obd l0_hard_concrete admm_weight deep_compression deep_rewiring soft_deep_rewiring
l1_weight_reg deepsz auto_threshold snip snip_isometry grasp synflow sbp_sr ntt lottery_imp early_bird
""".split()
FILTER_WEIGHTS = """
l1_filter lp_filter fpgm cosine_cluster fpfs pearson_pairs cac_sensitivity sensitivity_hessian dct_uniqueness
msvfp lfpc curating sfi wacp_jsd filtersketch clr_rnf cshe ccprune icp_clustering
""".split()
FILTER_DATA = """
apoz activation_entropy mean_gradient hrank msd_mcs qsfm fcs_bins phash_hamming fsim_entropy hrel
inbound_variance thinet taylor nisp lasso_channel hidden_entropy lrp feature_relevance_gradual
prune_while_training prune_early trace_ratio
""".split()
OTHER_STRUCTURES = """
group_brain_damage ssl increg pff_stripe layer_imprint block_dbp mixed_thinning mixed_pruning_fpga
gates_multilevel deformable_soft_mask bi_cnn_pruning coarse_fine multilevel_filter prunetrain hier_group_sparse
sfp asfp srfp asrfp discriminative_layer_pruning
""".split()

TRANSFORMERS = """
llm_pruner structured_bert_qa textpruner_vocabulary textpruner_transformer textpruner_pipeline flop speech_hj_pruning
text_cnn_filter_utility recursive_data_pruning up_vits discriminative_layer_pruning mi_layerwise greedy_layer_pruning
drop_layers pdp block_movement column_balanced_block reweighted_group_lasso_block blcr movement_pruning
gender_bias_movement voita_head_gates michel_head_importance lottery_heads minitron shortgpt_block_influence slicegpt
flap
""".split()
LANGUAGE = """
agp_cubic mmlap olmp narang_gradual block_sparse_rnn tight_compression lamp sw_mbp nmt_magnitude packnet
iterative_pruned_ensemble bert_lottery_ticket audio_lottery stochastic_cs_pruning wanda sparsegpt obert n_m_sparsity erk
owl structured_lottery_ticket
""".split()

CLASSIC = [*SINGLE_WEIGHTS, *FILTER_WEIGHTS, *FILTER_DATA, *OTHER_STRUCTURES]


@pytest.fixture(scope="module")
def listed() -> dict[str, dict[str, object]]:
    """What `prunus methods --json` says, by id and alias."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as done:
        main(["methods", "--json"])
    assert done.value.code == 0
    entries = json.loads(out.getvalue())["methods"]
    return {name: entry for entry in entries for name in (entry["id"], *entry["aliases"])}


@pytest.mark.parametrize("name", sorted({*CLASSIC, *TRANSFORMERS, *LANGUAGE}))
def test_it_is_listed_works_and_can_be_called_by_name(listed, name):
    assert listed[name]["status"] == "works"
    card = methods.card_of(name)
    if card.entry == "method":
        assert callable(card.run)
        assert f'"{card.id}"' in card.how
    elif card.entry in ("sparsify", "language"):  # a pattern, an allocation or a solver of these functions
        assert card.how.startswith("prunus.sparsify")
    else:  # what prune(criterion=name) and sparsify(criterion=name) look up
        assert f'"{name}"' in card.how or f'"{criterion_of(name).name}"' in card.how


def test_the_list_has_no_name_twice():
    assert len(CLASSIC) == len(set(CLASSIC)) == 79


def test_an_alias_is_the_same_card_and_no_other_methods_name():
    assert methods.card_of("layer_pls") is methods.card_of("discriminative_layer_pruning")
    aliases = [alias for card in methods.methods().values() for alias in card.aliases]
    assert len({*aliases, *methods.methods()}) == len(aliases) + len(methods.methods())
