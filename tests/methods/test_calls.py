from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from prunus import methods
from prunus.cli import main
from prunus.methods.calls import options_of, recipe_of
from prunus.pipeline import load_recipe

CARDS = list(methods.methods().values())


@pytest.mark.parametrize("card", [card for card in CARDS if recipe_of(card)], ids=lambda card: card.id)
def test_the_line_of_a_recipe_is_valid_and_says_what_the_card_says(card):
    start = {"model": "zoo:lenet300", "data": "digits", "train": {}}
    recipe = load_recipe({**start, **yaml.safe_load(recipe_of(card))})
    if card.entry == "criterion":
        assert recipe.prune.criterion == card.id
        return
    assert recipe.method is not None
    assert recipe.method.name == card.id
    assert set(recipe.method.options) <= set(options_of(card))
    if "amount=" in card.how:
        assert f"amount={recipe.method.amount}" in card.how


def test_values_of_options_are_those_of_the_call():
    card = methods.card_of("snip")
    how = 'prunus.methods.run("snip", Task(model, x, train, target={"macs": 0.5}), batches=2, groups=("a", 1), b=True)'
    line = yaml.safe_load(recipe_of(replace(card, how=how)))
    assert line == {
        "method": {"name": "snip", "options": {"batches": 2, "groups": ["a", 1], "b": True}},
        "objective": {"target": {"macs": 0.5}},
    }


@pytest.mark.parametrize(
    "how",
    [
        'prunus.methods.run("snip", Task(model, ids, TokenSplit.of_text(tokens), amount=0.5))',
        'prunus.methods.run("snip", Task(model, x, train, amount=0.5), others=[b])',
        'prunus.methods.run("snip", Task(model, x, train, amount=0.5, loss=f))',
    ],
)
def test_what_a_recipe_cannot_say_has_no_line(how):
    assert recipe_of(replace(methods.card_of("snip"), how=how)) == ""


def test_options_are_those_of_the_function():
    assert options_of(methods.card_of("synflow")) == {"rounds": 100}
    assert options_of(methods.card_of("fpgm")) == {}


def test_the_command_line_says_how_one_is_called(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["methods", "snip"])
    said = " ".join(capsys.readouterr().out.split())
    assert "method: {name: snip, amount: 0.95}" in said
    assert "batches=1, batch_size=128" in said
