from __future__ import annotations

import json

import pytest
import torch

from prunus import methods
from prunus.cli import main
from prunus.criteria import criterion_of
from prunus.errors import InputError, UnknownNameError
from prunus.methods.card import Card
from prunus.zoo import build


def test_every_criterion_card_names_a_criterion_that_can_be_called_by_the_cards_id():
    cards = [card for card in methods.methods().values() if card.entry == "criterion"]
    assert cards
    for card in cards:
        assert criterion_of(card.id).name


def test_select_filters_and_refuses_unknown_facets_and_values():
    assert {card.id for card in methods.select(needs="labels")} >= {"taylor"}
    assert all(card.level == "filter" for card in methods.select(level="filter"))
    with pytest.raises(UnknownNameError, match="facet"):
        methods.select(colour="red")
    with pytest.raises(UnknownNameError, match="level"):
        methods.select(level="planet")


def test_a_card_must_say_where_it_comes_from():
    card = methods.card_of("fpgm")
    given = {name: getattr(card, name) for name in card.__dataclass_fields__}
    with pytest.raises(InputError, match="paper"):
        Card(**{**given, "paper": ""})
    with pytest.raises(InputError, match="run="):
        Card(**{**given, "entry": "method"})


def test_a_criterion_is_not_run_as_a_whole_method():
    task = methods.Task(build("lenet300"), torch.zeros(1, 1, 28, 28), train=[])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="not a whole procedure"):
        methods.run("fpgm", task)
    with pytest.raises(InputError, match="amount"):
        methods.Task(task.model, task.example_inputs, train=task.train, amount=1.5)


def test_the_command_line_lists_them_as_json(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as done:
        main(["methods", "--where", "level=filter", "--json"])
    assert done.value.code == 0
    listed = json.loads(capsys.readouterr().out)["methods"]
    assert {"l1_filter", "fpgm"} <= {entry["id"] for entry in listed}
    assert {entry["status"] for entry in listed} == {"works"}


def test_one_method_is_shown_whole(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["methods", "fpgm"])
    assert "1811.00250" in capsys.readouterr().out


def test_a_method_is_found_by_its_other_names_and_listed_once():
    assert methods.card_of("gradual_magnitude") is methods.card_of("agp_cubic")
    for card in methods.methods().values():
        for name in card.aliases:
            assert name not in methods.methods()
            assert methods.card_of(name) is card
    with pytest.raises(UnknownNameError, match="gradual_magnitude"):
        methods.card_of("gradual_magnitud")
