from __future__ import annotations

import torch

from prunus.criteria import gradients

A = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
G = torch.tensor([[0.5, -0.25], [0.1, 0.4]])


def test_sum_of_squares_of_the_worked_example():
    score = gradients.taylor_weight(A.reshape(1, 4), G.reshape(1, 4).square())
    torch.testing.assert_close(score, torch.tensor([0.75]))


def test_joint_and_gate_forms_pass_the_collected_squares_on():
    squares = torch.tensor([0.01, 0.5])
    assert torch.equal(gradients.taylor_joint(squares), squares)
    assert torch.equal(gradients.taylor_gate(squares), squares)


def test_activation_scores_have_unit_length_in_a_layer_however_small_they_are():
    for scale in (1.0, 1e-30, 1e30):
        score = gradients.taylor_activation(torch.tensor([3.0, 4.0]) * scale)
        torch.testing.assert_close(score, torch.tensor([0.6, 0.8]))
    assert gradients.taylor_activation_abs(torch.zeros(3)).tolist() == [0, 0, 0]
