"""Words of the two embedded tasks: metrics with a polarity, direction verbs, guidance actions, companies.

Every word here is used under every label; what decides is how the words combine.
"""

from __future__ import annotations

from dataclasses import dataclass

UP, FLAT, DOWN = 1, 0, -1


@dataclass(frozen=True)
class Metric:
    """A quantity. polarity: +1 more is better, -1 more is worse, 0 no bearing on shareholders.

    kind: money (millions), small (dollars a share), percent, count, few (single items), pages.
    """

    text: str
    polarity: int
    kind: str
    plural: bool = False
    spread: bool = False  # also takes "widened" and "narrowed"


METRICS = (
    Metric("revenue", 1, "money"),
    Metric("operating profit", 1, "money"),
    Metric("free cash flow", 1, "money"),
    Metric("new orders", 1, "money", plural=True),
    Metric("order backlog", 1, "money"),
    Metric("operating margin", 1, "percent", spread=True),
    Metric("gross margin", 1, "percent", spread=True),
    Metric("market share", 1, "percent"),
    Metric("earnings per share", 1, "small", plural=True),
    Metric("same-store sales", 1, "money", plural=True),
    Metric("paying subscribers", 1, "count", plural=True),
    Metric("customer retention", 1, "percent"),
    Metric("net loss", -1, "money", spread=True),
    Metric("operating loss", -1, "money", spread=True),
    Metric("operating costs", -1, "money", plural=True),
    Metric("customer churn", -1, "percent"),
    Metric("net debt", -1, "money"),
    Metric("bad loans", -1, "money", plural=True),
    Metric("loss per share", -1, "small"),
    Metric("write-downs", -1, "money", plural=True),
    Metric("customer complaints", -1, "count", plural=True),
    Metric("warranty claims", -1, "count", plural=True),
    Metric("product returns", -1, "count", plural=True),
    Metric("restructuring charges", -1, "money", plural=True),
    Metric("board size", 0, "few"),
    Metric("number of share classes", 0, "few"),
    Metric("number of reporting segments", 0, "few"),
    Metric("number of legal entities", 0, "few"),
    Metric("number of registered offices", 0, "few"),
    Metric("number of board committees", 0, "few"),
    Metric("number of investor events", 0, "few"),
    Metric("annual report page count", 0, "pages"),
)


@dataclass(frozen=True)
class Verb:
    """A direction. `be` marks predicates that need was/were ("was unchanged")."""

    direction: int
    base: str  # did not ...
    past: str
    third: str  # headline, singular subject
    ing: str
    be: bool = False
    spread: bool = False


VERBS = (
    Verb(UP, "rise", "rose", "rises", "rising"),
    Verb(UP, "climb", "climbed", "climbs", "climbing"),
    Verb(UP, "increase", "increased", "increases", "increasing"),
    Verb(UP, "grow", "grew", "grows", "growing"),
    Verb(UP, "go up", "went up", "goes up", "going up"),
    Verb(DOWN, "fall", "fell", "falls", "falling"),
    Verb(DOWN, "drop", "dropped", "drops", "dropping"),
    Verb(DOWN, "decrease", "decreased", "decreases", "decreasing"),
    Verb(DOWN, "decline", "declined", "declines", "declining"),
    Verb(DOWN, "go down", "went down", "goes down", "going down"),
    Verb(FLAT, "stay level", "stayed level", "stays level", "staying level"),
    Verb(FLAT, "hold steady", "held steady", "holds steady", "holding steady"),
    Verb(FLAT, "stay unchanged", "unchanged", "unchanged", "staying unchanged", be=True),
    Verb(FLAT, "stay flat", "flat", "flat", "staying flat", be=True),
    Verb(UP, "widen", "widened", "widens", "widening", spread=True),
    Verb(DOWN, "narrow", "narrowed", "narrows", "narrowing", spread=True),
)

NOUNS = {
    UP: ("rise", "increase", "climb"),
    DOWN: ("fall", "drop", "decline", "decrease"),
    FLAT: ("no change",),
}
ADJECTIVES = {UP: ("higher", "increased", "rising"), DOWN: ("lower", "decreased", "falling")}
SHORT = {UP: ("up",), DOWN: ("down",), FLAT: ("flat", "unchanged", "level")}

ABOVE = {
    UP: ("above", "higher than", "over"),
    DOWN: ("below", "lower than", "under"),
    FLAT: ("in line with", "equal to", "the same as"),
}
FORECAST = ("analysts' forecasts", "the consensus forecast", "market forecasts", "what analysts had forecast")
LAST_YEAR = ("last year's figure", "the year before", "the previous quarter", "the prior-year level")

MIDDLES = ("across the group", "on a reported basis", "as reported", "under current accounting rules", "after rounding")
BEFORE = ("group", "reported", "overall")
PERIODS = (
    "the first quarter", "the second quarter", "the third quarter", "the fourth quarter",
    "the first half", "the second half", "the full year", "the nine months to September",
)
SHORT_PERIODS = ("Q1", "Q2", "Q3", "Q4", "H1", "H2", "FY")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")

EVENTS = (
    "will hold its annual meeting on {day} {month}",
    "named a new auditor in {month}",
    "will publish its annual report on {day} {month}",
    "moved its registered office in {month}",
    "changed its ticker symbol in {month}",
    "will present at an investor conference on {day} {month}",
    "opened a new store in {month}",
    "filed its annual report on {day} {month}",
)

# ---------------------------------------------------------------- guidance


@dataclass(frozen=True)
class Act:
    """What is done to an object {o}: raise (+1), keep (0), lower (-1)."""

    direction: int
    past: str
    base: str
    ing: str
    third: str
    passive: str  # {o} was ...


ACTS = (
    Act(UP, "raised {o}", "raise {o}", "raising {o}", "raises {o}", "raised"),
    Act(UP, "lifted {o}", "lift {o}", "lifting {o}", "lifts {o}", "lifted"),
    Act(UP, "increased {o}", "increase {o}", "increasing {o}", "increases {o}", "increased"),
    Act(FLAT, "maintained {o}", "maintain {o}", "maintaining {o}", "maintains {o}", "maintained"),
    Act(FLAT, "kept {o} unchanged", "keep {o} unchanged", "keeping {o} unchanged", "keeps {o} unchanged", "kept unchanged"),
    Act(FLAT, "left {o} as it was", "leave {o} as it was", "leaving {o} as it was", "leaves {o} as it was", "left as it was"),
    Act(FLAT, "confirmed {o}", "confirm {o}", "confirming {o}", "confirms {o}", "confirmed"),
    Act(DOWN, "lowered {o}", "lower {o}", "lowering {o}", "lowers {o}", "lowered"),
    Act(DOWN, "cut {o}", "cut {o}", "cutting {o}", "cuts {o}", "cut"),
    Act(DOWN, "reduced {o}", "reduce {o}", "reducing {o}", "reduces {o}", "reduced"),
)

SPANS = ("full-year", "annual", "current", "group", "published")  # stand before guidance and before other objects alike
GUIDANCE = (
    "guidance", "outlook", "forecast", "revenue guidance", "profit guidance", "sales forecast",
    "profit forecast", "revenue outlook", "sales outlook", "sales guidance",
)
OTHERS = (
    "dividend", "store budget", "sales budget", "research budget", "profit share", "sales quota", "training budget",
    "bonus pool", "travel budget", "advertising budget",
)
ACTORS = (
    "a large customer", "a supplier", "a close rival", "a competitor", "a peer", "a joint-venture partner",
)
MEASURES = (
    ("revenue", "money"), ("sales", "money"), ("operating profit", "money"), ("revenue growth", "growth"),
    ("an operating margin", "growth"), ("sales growth", "growth"), ("earnings per share", "small"),
)

# ---------------------------------------------------------------- invented companies

STEMS = {
    "train": (
        "Brantholm Calderwick Dunmarra Eskvale Fennimoor Garrowby Hallowick Inverlund Jorvane Kestrelby "
        "Lindermoss Marrowgate Northavel Oakenhurl Pellbridge Quarrenby Rosmarket Stavelock Thornacre Ullswade "
        "Varrowmere Westerlund Yarrowdene Zellbrook Ashgarth Birchavon Corvelle Dalestrand Elmsworthy Farrowick "
        "Glenhaugh Harrowfen Islemark Junivale Kirkmoorland Larkenby Mossgrave Nethercliff Orrinford Pinemarsh "
        "Redcombe Silverane Tarnholme Underhaugh Velmarra Wolverby Aldermoor Bexcombe Cravenhall Dovermoss"
    ).split(),
    "val": "Amberlund Brockmere Cindervale Drummoor Everholt Foxgarth Greymarsh Hazelstrand Ironvale Junehaven".split(),
    "test": (
        "Abberwick Bellamoor Coldersea Dravenhurst Eddlestow Frostwick Gildermere Hartsgrove Ivelstone Kelderby "
        "Lochmarra Midderfen Novelund Ossenbury Penvarrow Ravelstoke Sandermoor Tillerby Umberholt Vexmoor "
        "Winterlea Yellowfen Zanderby Appleholm"
    ).split(),
}
SECTORS = (
    "Foods", "Devices", "Logistics", "Energy", "Retail", "Software", "Motors", "Chemicals", "Media", "Health",
    "Bank", "Insurance", "Airlines", "Telecom", "Tools", "Textiles", "Packaging", "Mining", "Hotels", "Group",
)
