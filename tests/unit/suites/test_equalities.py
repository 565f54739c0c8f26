"""Which equalities in a text hold: by a table of what models write, and by generated sums."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.suites.equalities import (
    MAX_LENGTH,
    UnreadableEqualityError,
    named_values,
    read_chains,
)

GOLDEN = "F[T] = Φ(0.81) − 0.3×H(0.40) + 0.25×C(0.52) = 0.81 − 0.12 + 0.13 = 0.82"


def holds(text: str) -> bool:
    return all(chain.holds() for chain in read_chains(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no arithmetic at all, 3 or 4 words",
        GOLDEN,
        GOLDEN + "; λ·dH/dt = 0.3×0.40 = 0.12, stable",
        GOLDEN.replace("−", "-").replace("×", "*"),
        "0.81 − 0.3×0.41 + 0.25×0.53 = 0.81 − 0.12 + 0.13 = 0.82",  # 0.8195
        # Rounded terms add up to more than the rounded sum may differ: term by term it is right.
        "1.00 + 0.3×0.55 + 0.3×0.55 = 1.00 + 0.17 + 0.17",  # 1.33 and 1.34
        "2 + 3×4 = 14",
        "(2 + 3)×4 = 20",
        "2·3/4 = 1.5",
        "1/3 = 0.33",
        "1/3 = 0.3333",
        "1/3 + 0.25 = 0.3 + 0.25",  # the least precise number counts
        "0.25×0.54 = 0.13",  # 0.135 is halfway, so either neighbour is within rounding
        "0.25×0.54 = 0.14",
        "−0.27 + 0.01 = −0.26",
        "0.3 - -0.2 = 0.5",
        "λ×H(0.40) = 0.12",
        "γ·C(0.52) = 0.13",
        "0.80·e^(−0.1×3) = 0.59",
        "φ₀ = √(0.32/(2×0.25)) = 0.80",
        "the sum (0.1 + 0.2 = 0.3) is right",
        "F[T] = 0.82 (rounded)",
        "F[T] = Φ − λH + γC = 0.82",
        "F[T] = Φ − 0.12 + γC = 0.69 + 0.13 = 0.82",
        "λ·dH/dt = 0.3×dH/dt = 0.3×0.40 = 0.12",
        "dΦ/dt − 0.12 = 0.01",  # what dΦ/dt is, nobody says
        "F = high; G = 0.5",
        "dΦ/dt = 0.13 ≈ 0.12 = 0.3×0.40",
        "F(T) = 0.82. H(T|X) = 0.40",
        "at 3 months = 0.59",
    ],
)
def test_true(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        GOLDEN[:-1] + "3",  # the right formula with a wrong sum
        GOLDEN.replace("0.13", "0.14"),  # a wrong term, whatever the sum
        GOLDEN.replace("Φ(0.81)", "Φ(0.80)"),
        GOLDEN.replace("− 0.12", "+ 0.12"),
        "2 + 2 = 5",
        "2 + 2.4 = 4",  # integers are not rounded
        "1/3 = 0.34",
        "0.25×0.56 = 0.13",  # 0.14
        "prose first. 0.1 + 0.1 = 0.3. 0.1 + 0.1 = 0.2",
        "a sum (0.1 + 0.2 = 0.4) in parentheses",
        "1 = 1 = 2",
        "0.82 = 0.80 + 0.03",
        "0.3 - -0.2 = 0.1",
        "0.5 = F = 0.7",
        "0.5 = Φ − 0.12 = 0.7",
    ],
)
def test_false(text: str) -> None:
    assert not holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "0.3 0.4 = 0.7",
        "0.3 + = 0.3",
        "0.3 = × 0.3",
        "2^3 = 8",
        "82% = 0.82",
        "1/0 = 1",
        "√(−1) = 1",
        "e^(9999999999) = 1",
        "(" * 400 + "1" + ")" * 400 + " = 1",
        "−" * 400 + "1 = 1",
        "1 = 1 " * MAX_LENGTH,
    ],
)
def test_unreadable(text: str) -> None:
    with pytest.raises(UnreadableEqualityError):
        read_chains(text)


def test_chains_have_names_and_operands() -> None:
    (functional, threshold) = read_chains(GOLDEN + "; λ·dH/dt = 0.3×0.40 = 0.12, stable")
    assert functional.names == ("F[T]",)
    assert [operand.value for operand in functional.operands] == [Decimal("0.82")] * 3
    assert [operand.is_number for operand in functional.operands] == [False, False, True]
    assert functional.operands[1].terms == (Decimal("0.81"), Decimal("-0.12"), Decimal("0.13"))
    assert threshold.names == ("dt",)
    assert [operand.value for operand in threshold.operands] == [Decimal("0.12")] * 2


def test_names_in_a_chain() -> None:
    (chain,) = read_chains("so F = F[T] = Φ − λH = 0.82")
    assert chain.names == ("F", "F[T]")
    assert [operand.value for operand in chain.operands] == [Decimal("0.82")]


def test_a_negative_number_is_a_number() -> None:
    (chain,) = read_chains("F = −0.16")
    assert [(operand.value, operand.is_number) for operand in chain.operands] == [
        (Decimal("-0.16"), True)
    ]


def test_named_values() -> None:
    assert named_values(GOLDEN + " H(T|X) f(-1)") == [
        ("Φ", Decimal("0.81")),
        ("H", Decimal("0.40")),
        ("C", Decimal("0.52")),
        ("f", Decimal(-1)),
    ]


hundredths = st.integers(0, 999).map(lambda n: Decimal(n).scaleb(-2))


@given(st.lists(hundredths, min_size=1, max_size=6), st.integers(-3, 3))
def test_a_sum_holds_exactly_when_it_is_right(numbers: list[Decimal], error: int) -> None:
    total = sum(numbers, Decimal(0)) + Decimal(error).scaleb(-2)
    assert holds(f"{' + '.join(map(str, numbers))} = {total}") == (error == 0)


@given(hundredths, hundredths, st.integers(0, 4))
def test_a_rounded_product_holds(x: Decimal, y: Decimal, places: int) -> None:
    product = round(x * y, places)
    exact = places == 0 and product != x * y  # an integer claims to be exact
    assert holds(f"{x}×{y} = {product}") == (not exact)


@given(st.text(alphabet="0123456789.=+−-×*/()√e^λΦH F[T];,%²", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        chains = read_chains(text)
    except UnreadableEqualityError:
        return
    assert all(isinstance(chain.holds(), bool) for chain in chains)
