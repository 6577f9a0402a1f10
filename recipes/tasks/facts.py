"""Public figures of listed companies, for the public rows of `tone`: millions of US dollars a fiscal year (or quarter).

Read from XBRL facts of the filing named: Apple's years 2020-2023 and Q2 2024-2025, Netflix's Q3 2009-2010, Boston Beer's and
Applied Optoelectronics' second quarters. The rest is written down from memory of the annual reports named, to about three or
four digits, and not checked against them; later restatements may differ. Texts show two digits. No company is in two splits.
Years are each company's own fiscal years. "costs" is cost of sales (Meta: all costs and expenses), "operating costs" operating
expenses, "selling costs" selling, general and administrative expense, "debts" long-term debt (Verizon, AT&T: all debt), "profits"
net income, "losses" net loss.
"""

from __future__ import annotations

LEAST, MOST_LEVEL = 0.015, 0.03  # a move is at least this, and figures that round alike are level up to that; what is between is left out


def years(first: int, *values: float) -> dict[str, float]:
    return {str(first + i): v for i, v in enumerate(values)}


# split -> company -> (source, metric -> period -> value)
FACTS: dict[str, dict[str, tuple[str, dict[str, dict[str, float]]]]] = {
    "train": {
        "Apple": ("10-K 2022 and 2023, 10-Q of March 2025 (its Q2)", {
            "sales": years(2020, 274515, 365817, 394328, 383285) | {"Q2 2024": 90753, "Q2 2025": 95359},
            "profits": years(2020, 57411, 94680, 99803, 96995) | {"Q2 2024": 23636, "Q2 2025": 24780},
            "costs": years(2020, 169559, 212981, 223546, 214137) | {"Q2 2024": 48482, "Q2 2025": 50492},
            "operating costs": years(2020, 38668, 43887, 51345, 54847) | {"Q2 2024": 14371, "Q2 2025": 15278},
            "selling costs": years(2020, 19916, 21973, 25094, 24932),
            "debts": years(2021, 109106, 98959, 95281, 85750),
        }),
        "Nike": ("10-K 2021 to 2025", {
            "sales": years(2021, 44538, 46710, 51217, 51362, 46309),
            "profits": years(2021, 5727, 6046, 5070, 5700, 3219),
            "costs": years(2021, 24576, 25231, 28925, 28475, 26519),
        }),
        "Coca-Cola": ("10-K 2019 to 2024", {
            "revenues": years(2019, 37266, 33014, 38655, 43004, 45754, 47061),
            "profits": years(2021, 9771, 9542, 10714, 10631),
            "costs": years(2021, 15357, 18000, 18520, 18324),
            "debts": years(2021, 38116, 36377, 35547, 42375),
        }),
        "Walmart": ("10-K 2021 to 2025", {
            "revenues": years(2021, 559151, 572754, 611289, 648125, 680985),
            "earnings": years(2021, 13510, 13673, 11680, 15511, 19436),
            "costs": years(2021, 420315, 429000, 463721, 490142, 511753),
        }),
        "Procter & Gamble": ("10-K 2020 to 2025", {
            "sales": years(2020, 70950, 76118, 80187, 82006, 84039, 84284),
            "earnings": years(2020, 13027, 14306, 14742, 14653, 14879, 15974),
            "costs": years(2021, 37108, 42157, 42760, 40848, 41164),
        }),
        "AT&T": ("10-K 2022 to 2024", {
            "revenues": years(2022, 120741, 122428, 122336),
            "profits": years(2023, 14400, 10948),
            "debts": years(2022, 135900, 137300, 123500),
        }),
        "Applied Optoelectronics": ("10-Q of June 2014, 10-K 2019 to 2024", {
            "sales": years(2019, 190.9, 234.6, 211.6, 222.8, 217.6, 249.4) | {"Q2 2013": 19.6, "Q2 2014": 32.7},
            "losses": years(2019, 66.0, 58.5, 54.2, 66.4, 56.0, 186.7),
            "costs": {"Q2 2013": 14.15, "Q2 2014": 21.46},
            "operating costs": {"Q2 2013": 5.4, "Q2 2014": 9.46},
        }),
    },
    "val": {
        "Netflix": ("10-Q of September 2010, 10-K 2020 to 2024", {
            "revenues": years(2020, 24996, 29698, 31616, 33723, 39001) | {"Q3 2009": 423.1, "Q3 2010": 553.2},
            "profits": years(2020, 2761, 5116, 4492, 5408, 8712) | {"Q3 2009": 30.1, "Q3 2010": 38.0},
            "marketing costs": years(2020, 2228, 2545, 2531, 2658, 2918) | {"Q3 2009": 58.6, "Q3 2010": 81.2},
        }),
        "Starbucks": ("10-K 2021 to 2024", {
            "revenues": years(2021, 29061, 32250, 35976, 36176),
            "earnings": years(2021, 4199, 3282, 4125, 3761),
        }),
        "Target": ("10-K 2020 to 2024", {
            "sales": years(2020, 93561, 106005, 109120, 107412, 106566),
            "earnings": years(2020, 4368, 6946, 2780, 4138, 4091),
            "costs": years(2020, 66177, 74963, 82229, 77736, 76502),
        }),
    },
    "test": {
        "Boston Beer": ("10-Q of June 2013, 10-K 2020 to 2024", {
            "sales": years(2020, 1736, 2058, 2090, 2009, 2013) | {"Q2 2012": 147.5, "Q2 2013": 181.3},
            "profits": years(2020, 192, 14.6, 67.3, 76.3, 59.7) | {"Q2 2012": 14.35, "Q2 2013": 19.7},
            "costs": {"Q2 2012": 67.1, "Q2 2013": 84.2},
            "operating costs": {"Q2 2012": 56.9, "Q2 2013": 65.1},
        }),
        "Meta": ("10-K 2020 to 2024", {
            "revenues": years(2020, 85965, 117929, 116609, 134902, 164501),
            "profits": years(2020, 29146, 39370, 23200, 39098, 62360),
            "costs": years(2020, 53300, 71176, 87665, 88151, 95121),
        }),
        "Nvidia": ("10-K 2022 to 2025", {
            "revenues": years(2022, 26914, 26974, 60922, 130497),
            "profits": years(2022, 9752, 4368, 29760, 72880),
            "operating costs": years(2022, 7434, 11132, 11329, 16405),
        }),
        "Snap": ("10-K 2019 to 2024", {
            "revenues": years(2020, 2507, 4117, 4602, 4606, 5361),
            "losses": years(2019, 1034, 944.8, 488, 1430, 1322, 698),
        }),
        "McDonald's": ("10-K 2020 to 2024", {
            "revenues": years(2020, 19208, 23223, 23183, 25494, 25920),
            "earnings": years(2020, 4731, 7545, 6177, 8469, 8223),
        }),
        "Verizon": ("10-K 2020 to 2024", {
            "revenues": years(2020, 128292, 133613, 136835, 133974, 134788),
            "profits": years(2020, 17801, 22065, 21256, 11614, 17506),
            "debts": years(2021, 150868, 150639, 150704, 144014),
        }),
    },
}  # fmt: skip


def shown(millions: float) -> str:
    """An amount to two digits: $390 billion, $2.1 billion, $67 million."""
    two = float(f"{millions:.1e}")
    amount, unit = (two / 1000, "billion") if two >= 1000 else (two, "million")
    return f"${amount:.0f} {unit}" if amount >= 10 else f"${amount:.1f} {unit}"


def moves(metrics: dict[str, dict[str, float]]) -> list[dict]:
    """Each change from one fiscal year, or quarter, to the same of the next: its metric, period, end, way, values as shown."""
    out = []
    for metric, values in metrics.items():
        for period, value in values.items():
            quarter, year = period[:-4], int(period[-4:])
            before = values.get(f"{quarter}{year - 1}")
            if before is None:
                continue
            change, alike = value / before - 1, shown(value) == shown(before)
            if abs(change) <= MOST_LEVEL if alike else abs(change) >= LEAST:
                end = year + (int(quarter[1]) / 4 if quarter else 1)
                way = 0 if alike else 1 if change > 0 else -1
                out.append({"metric": metric, "period": period, "end": end, "way": way, "from": shown(before), "to": shown(value)})
    return out
