"""Ratios that can be made from a filing's facts: named ones, shares of a total, and changes over time.

    ratios(filing, facts)       Ratio(name, form, a, b): form "share" is a / b, "change" is (a - b) / b

A named ratio is made of the concepts the filing really uses (its sales may be Revenues or SalesRevenueNet).  A share is of a
parent and a child of the calculation linkbase, or of a member and the fact without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from .facts import Fact, Filing

SALES = ("RevenueFromContractWithCustomerExcludingAssessedTax", "Revenues", "SalesRevenueNet", "SalesRevenueGoodsNet")
COSTS = ("CostOfGoodsAndServicesSold", "CostOfRevenue", "CostOfGoodsSold")
PRETAX = (
    "IncomeLossFromContinuingOperationsBeforeIncomeTaxesExtraordinaryItemsNoncontrollingInterest",
    "IncomeLossFromContinuingOperationsBeforeIncomeTaxesMinorityInterestAndIncomeLossFromEquityMethodInvestments",
)
OPERATING_CASH = ("NetCashProvidedByUsedInOperatingActivities", "NetCashProvidedByUsedInOperatingActivitiesContinuingOperations")
NAMED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "the current ratio": (("AssetsCurrent",), ("LiabilitiesCurrent",)),
    "the cash ratio": (("CashAndCashEquivalentsAtCarryingValue",), ("LiabilitiesCurrent",)),
    "the ratio of debt to equity": (("Liabilities",), ("StockholdersEquity",)),
    "the equity multiplier": (("Assets",), ("StockholdersEquity",)),
    "the equity ratio": (("StockholdersEquity",), ("Assets", "LiabilitiesAndStockholdersEquity")),
    "the share of current in all assets": (("AssetsCurrent",), ("Assets",)),
    "the share of inventory in current assets": (("InventoryNet",), ("AssetsCurrent",)),
    "the gross margin": (("GrossProfit",), SALES),
    "the operating margin": (("OperatingIncomeLoss",), SALES),
    "the net margin": (("NetIncomeLoss", "ProfitLoss"), SALES),
    "the share of the cost of sales in sales": (COSTS, SALES),
    "the share of research and development in sales": (("ResearchAndDevelopmentExpense",), SALES),
    "the share of marketing in sales": (("SellingAndMarketingExpense", "MarketingExpense"), SALES),
    "the effective tax rate": (("IncomeTaxExpenseBenefit",), PRETAX),
    "the operating cash flow margin": (OPERATING_CASH, SALES),
    "the payout ratio": (("PaymentsOfDividends", "Dividends"), ("NetIncomeLoss", "ProfitLoss")),
}
SAME_LENGTH = 8  # days by which two quarters or years may differ in length


@dataclass(frozen=True)
class Ratio:
    """A ratio of two facts. name: as asked. form: "share", a / b, or "change", (a - b) / b."""

    name: str
    form: str
    a: Fact
    b: Fact


def ratios(filing: Filing, facts: Iterable[Fact]) -> list[Ratio]:
    """All ratios of the facts, each with a denominator above nothing, in a fixed order."""
    facts = [f for f in facts if f.number is not None]
    at = {(f.concept, *f.context, f.unit): f for f in facts}
    found: dict[tuple[str, str, str], Ratio] = {}

    def add(name: str, form: str, a: Fact | None, b: Fact | None) -> None:
        if a is not None and b is not None and a is not b and b.number and b.number > 0 and a.unit == b.unit:
            found.setdefault((name, form, str((a.context, b.context))), Ratio(name, form, a, b))

    contexts = sorted({(f.period, f.unit) for f in facts if not f.members})
    for name, (upper, lower) in NAMED.items():
        for period, unit in contexts:
            a, b = (next((at[k] for c in names if (k := (f"us-gaap:{c}", period, (), unit)) in at), None) for names in (upper, lower))
            add(name, "share", a, b)
    for arc in filing.arcs:
        for period, unit in contexts:
            add(f"{arc.child} as a share of {arc.parent}", "share", at.get((arc.child, period, (), unit)), at.get((arc.parent, period, (), unit)))
    for f in facts:
        if len(f.members) == 1:
            axis, member = f.members[0]
            add(f"the share of {f.concept} that falls to {axis} = {member}", "share", f, at.get((f.concept, f.period, (), f.unit)))
    series: dict[tuple, list[Fact]] = {}
    for f in facts:
        if not f.members:
            series.setdefault((f.concept, f.unit), []).append(f)
    for (concept, _), row in series.items():
        row = sorted(row, key=lambda f: (f.end, f.start))
        for i, earlier in enumerate(row):
            for later in row[i + 1 :]:
                if earlier.end != later.end and abs(length(earlier) - length(later)) <= SAME_LENGTH and bool(earlier.start) == bool(later.start):
                    add(f"the relative change of {concept}", "change", later, earlier)
                    add(f"the relative change of {concept}", "change", earlier, later)  # asked both ways, so that growth is no hint
    return list(found.values())


def length(fact: Fact) -> int:
    """Days that a duration lasts; 0 for an instant."""
    return (date.fromisoformat(fact.end) - date.fromisoformat(fact.start)).days if fact.start else 0
