from __future__ import annotations

from prunus.report.tradeoff import Point, tradeoff


def points(*accuracies: float, **more):
    return [Point(f"p{i}", 100.0 * (i + 1), a, "pruned", "circle", **more) for i, a in enumerate(accuracies)]


def test_a_collapsed_model_is_an_arrow_and_does_not_flatten_the_others():
    drawn = tradeoff(points(0.93, 0.92, 0.10), 720, "chart")
    assert "p2 10.0%" in drawn  # named with the value that its place no longer shows
    assert "93.0%" in drawn
    assert ">10%<" not in drawn


def test_all_marks_stay_above_the_axis():
    drawn = tradeoff(points(0.93, 0.931, 0.929), 340, "chart")
    assert drawn.count('class="mark') == 3


def test_front_is_drawn_as_steps_through_its_points():
    flagged = [
        Point("a", 50, 0.90, "curve", "circle", pareto=True),
        Point("b", 100, 0.93, "curve", "circle", pareto=True),
    ]
    assert 'class="line front"' in tradeoff(flagged, 720, "chart")
    assert 'class="line front"' not in tradeoff(points(0.9, 0.93), 720, "chart")


def test_points_of_one_criterion_share_a_line_and_a_name():
    mine = [Point("", 50, 0.90, "curve", "circle", named=False, series="l2_norm")]
    mine += [Point("", 80, 0.92, "curve", "circle", named=False, series="l2_norm")]
    drawn = tradeoff([*mine, *points(0.93)], 720, "chart")
    assert "line thin curve" in drawn
    assert drawn.count(">l2_norm<") == 1
