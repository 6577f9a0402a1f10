"""Words of the two embedded tasks. Common ones, so that a small vocabulary keeps most of them whole."""

from __future__ import annotations

# A company is two words of its split, as "North Bank"; no such word is in two splits.
FIRST = {
    "train": ("North", "First", "Union", "United", "King", "Central", "Green", "Stone", "Lake", "Star", "Hill", "Crown", "Gold", "Oak", "Fox", "Park"),
    "val": ("South", "Blue", "Iron", "Sun", "Bay", "Lion"),
    "test": ("Western", "American", "General", "River", "Queen", "Forest", "Bear", "Bridge"),
}
SECOND = {"train": ("Bank", "Oil", "Steel", "Air", "Media", "Paper"), "val": ("Power", "Health", "Land"), "test": ("Energy", "Water", "Rail", "Capital")}

GOOD = ("orders", "sales", "earnings", "profits", "margins", "revenues")  # more is good news for shareholders
BAD = ("costs", "losses", "debts")  # more is bad news
MOVES = {1: ("rose", "grew", "gained", "increased"), 0: ("held", "stayed flat", "were unchanged"), -1: ("fell", "dropped", "declined", "decreased")}

OWN = ("guidance", "outlook", "forecast")
STEPS = {1: ("raised", "increased", "lifted"), 0: ("held", "kept", "maintained"), -1: ("cut", "reduced", "lowered")}

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
LINKS = (", ", "; ")
# Every text ends with one of these. They begin as the next statement would, with "in": what stands next to a verb tells nothing.
TAILS = {
    "train": ("in all", "in dollar terms", "in its main market", "in a new report", "in full"),
    "val": ("in part", "in its own report"),
    "test": ("in total", "in its market report", "in real terms"),
}
