"""Count equations: Python code demands that different axes keep equally many units, or that a count stays as it is.

Each equation says that the count of an axis equals a tree of attributes, counts of other axes and literals. Counts are
polynomials in the numbers of units of the free atoms. An equation is met by setting an attribute, by coupling atoms so
that they shrink in proportion, or, where neither helps, by freezing what it mentions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import gcd

from .algebra import AxisAlgebra, Reason
from .provenance import Arithmetic, Equation, FromAttribute, FromAxis, Literal, Tree, leaves
from .recorder import Multiple

Polynomial = dict[tuple[int, ...], int]
"""monomial (sorted variables, with repetition) -> coefficient; the empty monomial is the constant."""


def _add(a: Polynomial, b: Polynomial, factor: int = 1) -> Polynomial:
    result = dict(a)
    for monomial, coefficient in b.items():
        total = result.get(monomial, 0) + factor * coefficient
        if total:
            result[monomial] = total
        else:
            result.pop(monomial, None)
    return result


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for left, x in a.items():
        result = _add(result, {tuple(sorted((*left, *right))): x * y for right, y in b.items()})
    return result


def _without_common_factor(p: Polynomial) -> Polynomial:
    """Divide by every variable that stands in all monomials: no count is ever zero."""
    monomials = list(p)
    common = list(monomials[0])
    for monomial in monomials[1:]:
        rest = list(monomial)
        common = [v for v in common if v in rest and not rest.remove(v)]
    result: Polynomial = {}
    for monomial, coefficient in p.items():
        rest = list(monomial)
        for variable in common:
            rest.remove(variable)
        result[tuple(rest)] = coefficient
    divisor = reduce(gcd, result.values())
    return {m: c // divisor for m, c in result.items()}


SOUGHT = -1
"""Stands for the count of an attribute that is looked for."""


@dataclass
class Solution:
    """Classes of atoms that shrink in proportion, and the axis that each attribute follows."""

    steps: dict[int, dict[int, int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    attributes: dict[tuple[str, str], int] = field(default_factory=dict)


class _Unknown(Exception):
    """An attribute whose axis is not known (yet)."""


class _Solver:
    def __init__(self, algebra: AxisAlgebra) -> None:
        self.algebra = algebra
        self.solution = Solution()
        self.class_of: dict[int, int] = {}
        self.constants: set[tuple[str, str]] = set()
        self.sought: tuple[str, str] | None = None

    def variable(self, atom: int) -> tuple[int, int]:
        """(class, step) of a free atom."""
        if atom not in self.class_of:
            self.class_of[atom] = atom
            self.solution.steps[atom] = {atom: 1}
        chosen = self.class_of[atom]
        return chosen, self.solution.steps[chosen][atom]

    def count(self, node: int) -> Polynomial:
        """How many positions an axis has, as a polynomial in the numbers of steps of the classes."""

        def atom(a: int) -> Polynomial:
            if self.algebra.atom_frozen(a) is not None:
                return {(): self.algebra.size(a)} if self.algebra.size(a) else {}
            chosen, step = self.variable(a)
            return {(chosen,): step}

        return self.algebra.fold(node, atom, lambda ps: reduce(_multiply, ps, {(): 1}), lambda ps: reduce(_add, ps, {}))

    def evaluate(self, tree: Tree) -> tuple[Polynomial, Polynomial]:
        """A tree as numerator and denominator. Floor division is taken as exact: the recorded sizes divide."""
        if isinstance(tree, Literal):
            return {(): tree.value} if tree.value else {}, {(): 1}
        if isinstance(tree, FromAxis):
            return self.count(tree.node), {(): 1}
        if isinstance(tree, FromAttribute):
            key = (tree.module, tree.name)
            if key == self.sought:
                return {(SOUGHT,): 1}, {(): 1}
            if key in self.solution.attributes:
                return self.count(self.solution.attributes[key]), {(): 1}
            if key in self.constants:
                return {(): tree.value} if tree.value else {}, {(): 1}
            raise _Unknown
        (a, b), (c, d) = self.evaluate(tree.left), self.evaluate(tree.right)
        if tree.symbol == "*":
            return _multiply(a, c), _multiply(b, d)
        if tree.symbol == "//":
            return _multiply(a, d), _multiply(b, c)
        return _add(_multiply(a, d), _multiply(c, b), 1 if tree.symbol == "+" else -1), _multiply(b, d)

    def freeze_class(self, chosen: int, equation: Equation) -> None:
        """Make all atoms of a class unprunable: nothing can meet the equation once their count changes."""
        reason = Reason(
            f"{equation.text}, and that count cannot change",
            "",
            equation.module,
            equation.source,
            "read the size from an attribute of the module or from another tensor's shape",
        )
        for atom in self.solution.steps.pop(chosen):
            self.algebra.freeze(atom, reason)
            del self.class_of[atom]

    def merge(self, classes: Iterable[int], equation: Equation) -> None:
        """Couple: all members shrink in proportion, in as many steps as divide all their sizes."""
        first, *others = sorted(set(classes))
        members = dict(self.solution.steps[first])
        for other in others:
            members |= self.solution.steps.pop(other)
            self.solution.reasons.pop(other, None)
        total = reduce(gcd, (self.algebra.size(atom) for atom in members))
        self.solution.steps[first] = {atom: self.algebra.size(atom) // total for atom in members}
        for atom in members:
            self.class_of[atom] = first
        self.explain(first, equation)
        if total == 1:
            self.freeze_class(first, equation)

    def settle(self, difference: Polynomial, equation: Equation, patient: bool) -> bool:
        """Make a polynomial that is zero now stay zero; products of counts, and sums with a number, wait if `patient`,
        since what other equations say about one of them often settles them too."""
        p = _without_common_factor(difference)
        if set(p) == {()}:  # never zero: pieces of unequal size, such as a chunk that does not come out even
            p = difference
        degrees = {len(m) for m in p}
        variables = {v for m in p for v in m}
        if degrees == {1} and len(variables) > 1:
            self.merge(variables, equation)
        elif max(degrees) <= 1 and (len(variables) == 1 or not patient):
            for variable in variables:
                self.freeze_class(variable, equation)
        elif patient:
            return False
        else:
            crowded = {v for m in p if len(m) > 1 for v in m}
            size = {v: min(self.algebra.size(a) for a in self.solution.steps[v]) for v in crowded}
            self.freeze_class(min(crowded, key=lambda v: (size[v], v)), equation)
        return True

    def has_number(self, equation: Equation) -> bool:
        """Whether something besides products of counts stands in an equation."""
        try:
            numerator, denominator = self.evaluate(equation.tree)
        except _Unknown:
            return False
        return () in _add(_multiply(self.count(equation.node), denominator), numerator, -1)

    def invert(self, equation: Equation, unknown: set[tuple[str, str]]) -> bool:
        """Find what the only unknown attribute of an equation counts, by taking the others off; True if it was."""
        found = {leaf for leaf in leaves(equation.tree) if isinstance(leaf, FromAttribute)}
        missing = [leaf for leaf in found if (leaf.module, leaf.name) in unknown]
        if len(missing) != 1:
            return False
        self.sought = missing[0].module, missing[0].name
        try:
            numerator, denominator = self.evaluate(equation.tree)
        finally:
            self.sought = None
        times = {m[1:]: c for m, c in numerator.items() if m[:1] == (SOUGHT,)}
        rest = {m: c for m, c in numerator.items() if m[:1] != (SOUGHT,)}
        if any(SOUGHT in m for m in (*denominator, *times)):
            return False
        left = _add(_multiply(self.count(equation.node), denominator), rest, -1)
        node = self.axis_of(left, times)
        if node is None or self.algebra.size(node) != missing[0].value:
            return False
        self.solution.attributes[missing[0].module, missing[0].name] = node
        return True

    def axis_of(self, above: Polynomial, below: Polynomial) -> int | None:
        """An axis that counts above / below, if that is one product of counts."""
        if not above or not below:
            return None
        (monomial, coefficient), divisor = min(above.items()), min(below)
        quotient = list(monomial)
        if coefficient % below[divisor] or any(v not in quotient or quotient.remove(v) for v in divisor):
            return None
        coefficient //= below[divisor]
        if _multiply(below, {tuple(quotient): coefficient}) != above:
            return None
        parts = []
        for variable in quotient:
            steps = self.solution.steps[variable]
            atom = next((a for a, step in steps.items() if coefficient % step == 0), None)
            if atom is None:
                return None
            coefficient //= steps[atom]
            parts.append(atom)
        return self.algebra.product([self.algebra.atom(coefficient, Reason("a number in the code")), *parts])

    def widen(self, multiple: Multiple) -> None:
        """Let classes shrink in longer steps, or not at all, so that an axis stays a multiple of a number."""
        equation = Equation(multiple.node, Literal(0), multiple.text, multiple.module, multiple.source)
        while wrong := [(m, multiple.of // gcd(c, multiple.of)) for m, c in self.count(multiple.node).items() if m]:
            monomial, factor = max(wrong, key=lambda term: term[1])
            if factor == 1:
                return
            fitting = [v for v in monomial if self.steps_of(v) % factor == 0]
            if not fitting:
                self.freeze_class(monomial[0], equation)
                continue
            chosen = max(fitting, key=lambda v: (self.steps_of(v), v))
            members = self.solution.steps[chosen]
            self.solution.steps[chosen] = {atom: step * factor for atom, step in members.items()}
            self.explain(chosen, equation)

    def steps_of(self, chosen: int) -> int:
        """How many steps a class is made of."""
        atom, step = next(iter(self.solution.steps[chosen].items()))
        return self.algebra.size(atom) // step

    def explain(self, chosen: int, equation: Equation) -> None:
        """Note which demand shaped a class."""
        where = f"{equation.source} in {equation.module or 'the model'}"
        self.solution.reasons[chosen] = f"{equation.text} ({where})"

    def step(self, equation: Equation, patient: bool) -> bool:
        """Look at one equation; True if something changed."""
        tree = equation.tree
        if isinstance(tree, FromAttribute):
            key = (tree.module, tree.name)
            if key not in self.solution.attributes and key not in self.constants:
                self.solution.attributes[key] = equation.node
                return True
        try:
            numerator, denominator = self.evaluate(tree)
        except _Unknown:
            return False
        difference = _add(_multiply(self.count(equation.node), denominator), numerator, -1)
        if not difference:
            return False
        if set(difference) == {()}:
            return False
        return self.settle(difference, equation, patient)


def _attributes(tree: Tree) -> set[tuple[str, str]]:
    if isinstance(tree, FromAttribute):
        return {(tree.module, tree.name)}
    return _attributes(tree.left) | _attributes(tree.right) if isinstance(tree, Arithmetic) else set()


def solve(algebra: AxisAlgebra, equations: Iterable[Equation], multiples: Iterable[Multiple] = ()) -> Solution:
    """Meet all equations; iterated to a fixed point, since an attribute found late bears on earlier equations. Then
    classes take steps that keep the multiples."""
    solver = _Solver(algebra)
    work = list({(algebra.find(e.node), e.tree): e for e in equations}.values())
    while True:
        while sum(solver.step(equation, patient=True) for equation in work):
            pass
        if any(solver.step(equation, patient=False) for equation in sorted(work, key=solver.has_number)):
            continue
        every = set().union(*(_attributes(e.tree) for e in work)) if work else set()
        open_ones = every - set(solver.solution.attributes) - solver.constants
        if not open_ones:
            break
        if any(solver.invert(equation, open_ones) for equation in work):
            continue
        solver.constants |= open_ones
    for multiple in multiples:
        solver.widen(multiple)
    return solver.solution


def proportional(steps: Mapping[int, int]) -> bool:
    """Whether a class constrains anything beyond one free atom."""
    return len(steps) > 1 or any(step != 1 for step in steps.values())
