"""Public figures of listed companies, rounded, as reported in their annual or quarterly filings.

A fact is (metric, period, value, earlier value) in millions of US dollars (dollars for per-share values); the earlier
value is that of the period one year before. Companies marked XBRL were read from their filings' XBRL facts; the others
are widely reported figures written down by hand and rounded to about three digits. They may differ slightly from later
restatements. The sentences built on them are ours.
"""

from __future__ import annotations

# metric -> (polarity, plural)
KINDS = {
    "revenue": (1, False),
    "net income": (1, False),
    "operating income": (1, False),
    "gross profit": (1, False),
    "operating cash flow": (1, False),
    "diluted earnings per share": (1, True),
    "net loss": (-1, False),
    "operating expenses": (-1, True),
    "long-term debt": (-1, False),
}


def yearly(metric: str, first: int, values: tuple, prefix: str = "") -> list[tuple]:
    """Facts of consecutive years: (2020, (a, b, c)) gives 2021 b after a, 2022 c after b."""
    return [(metric, f"{prefix}{first + i}", values[i], values[i - 1]) for i in range(1, len(values))]


FISCAL = "fiscal "

TRAIN = {
    ("Apple", "AAPL"): [  # XBRL: 10-K 2022 and 2023
        *yearly("revenue", 2021, (365817, 394328, 383285), FISCAL),
        *yearly("net income", 2021, (94680, 99803, 96995), FISCAL),
        *yearly("gross profit", 2021, (152836, 170782, 169148), FISCAL),
        *yearly("operating expenses", 2021, (43887, 51345, 54847), FISCAL),
        *yearly("operating cash flow", 2021, (104038, 122151, 110543), FISCAL),
    ],
    ("Boston Beer", "SAM"): [  # XBRL: 10-Q June 2013
        ("revenue", "the second quarter of 2013", 181.3, 147.5),
        ("net income", "the second quarter of 2013", 19.7, 14.4),
        ("operating expenses", "the second quarter of 2013", 65.1, 56.9),
        ("operating cash flow", "the first half of 2013", 18.0, 23.3),
        ("diluted earnings per share", "the first half of 2013", 1.96, 1.61),
    ],
    ("Microsoft", "MSFT"): [
        *yearly("revenue", 2021, (168088, 198270, 211915, 245122), FISCAL),
        *yearly("net income", 2021, (61271, 72738, 72361, 88136), FISCAL),
    ],
    ("Amazon", "AMZN"): [
        *yearly("revenue", 2021, (469822, 513983, 574785, 637959)),
        *yearly("operating income", 2020, (22899, 24879, 12248, 36852, 68593)),
    ],
    ("Alphabet", "GOOGL"): [
        *yearly("revenue", 2020, (182527, 257637, 282836, 307394, 350018)),
        *yearly("net income", 2020, (40269, 76033, 59972, 73795, 100118)),
    ],
    ("Intel", "INTC"): [
        *yearly("revenue", 2020, (77867, 79024, 63054, 54228, 53101)),
        *yearly("net income", 2020, (20899, 19868, 8014, 1689)),
    ],
    ("Walmart", "WMT"): [
        *yearly("revenue", 2021, (559151, 572754, 611289, 648125, 680985), FISCAL),
        *yearly("net income", 2021, (13510, 13673, 11680, 15511, 19436), FISCAL),
    ],
    ("Chevron", "CVX"): [*yearly("net income", 2021, (15625, 35465, 21369, 17661))],
    ("Pfizer", "PFE"): [
        ("revenue", "2022", 100330, 81288),
        ("revenue", "2023", 58496, 100330),
        ("net income", "2022", 31372, 21979),
        ("net income", "2023", 2119, 31372),
    ],
    ("Disney", "DIS"): [
        *yearly("revenue", 2021, (67418, 82722, 88898, 91361), FISCAL),
        *yearly("net income", 2021, (1995, 3145, 2354, 4972), FISCAL),
    ],
    ("Nike", "NKE"): [
        *yearly("revenue", 2021, (44538, 46710, 51217, 51362, 46309), FISCAL),
        *yearly("net income", 2021, (5727, 6046, 5070, 5700, 3219), FISCAL),
    ],
    ("Peloton", "PTON"): [*yearly("net loss", 2021, (189, 2828, 1262, 552), FISCAL)],
    ("Rivian", "RIVN"): [*yearly("net loss", 2021, (4688, 6752, 5432, 4747))],
    ("Boeing", "BA"): [
        *yearly("net loss", 2020, (11873, 4202, 4935, 2222, 11817)),
        *yearly("revenue", 2020, (58158, 62286, 66608, 77794, 66517)),
    ],
    ("Uber", "UBER"): [
        ("net loss", "2022", 9141, 496),
        ("revenue", "2023", 37281, 31877),
        ("revenue", "2024", 43978, 37281),
    ],
    ("Coca-Cola", "KO"): [
        *yearly("revenue", 2019, (37266, 33014, 38655, 43004, 45754, 47061)),
        *yearly("net income", 2021, (9771, 9542, 10714, 10631)),
    ],
}

VAL = {
    ("Netflix", "NFLX"): [  # XBRL: 10-Q September 2010
        ("revenue", "the third quarter of 2010", 553.2, 423.1),
        ("net income", "the third quarter of 2010", 38.0, 30.1),
        ("operating expenses", "the third quarter of 2010", 139.2, 98.5),
        ("operating cash flow", "the third quarter of 2010", 42.2, 78.3),
        ("diluted earnings per share", "the third quarter of 2010", 0.70, 0.52),
    ],
    ("Starbucks", "SBUX"): [
        *yearly("revenue", 2021, (29061, 32250, 35976, 36176), FISCAL),
        *yearly("net income", 2021, (4199, 3282, 4125, 3761), FISCAL),
    ],
    ("Wayfair", "W"): [*yearly("net loss", 2021, (131, 1331, 738, 492))],
    ("Ford", "F"): [("revenue", "2023", 176191, 158057), ("net income", "2024", 5879, 4347)],
}

TEST = {
    ("Applied Optoelectronics", "AAOI"): [  # XBRL: 10-Q June 2014
        ("revenue", "the first half of 2014", 57.5, 33.9),
        ("gross profit", "the second quarter of 2014", 11.2, 5.4),
        ("operating expenses", "the second quarter of 2014", 9.5, 5.4),
        ("operating expenses", "the first half of 2014", 17.9, 10.7),
    ],
    ("Meta", "META"): [
        *yearly("revenue", 2020, (85965, 117929, 116609, 134902, 164501)),
        *yearly("net income", 2020, (29146, 39370, 23200, 39098, 62360)),
    ],
    ("Nvidia", "NVDA"): [
        *yearly("revenue", 2023, (26974, 60922, 130497), FISCAL),
        *yearly("net income", 2022, (9752, 4368, 29760, 72880), FISCAL),
    ],
    ("Tesla", "TSLA"): [
        *yearly("revenue", 2020, (31536, 53823, 81462, 96773)),
        *yearly("net income", 2022, (12556, 14997, 7091)),
    ],
    ("Exxon Mobil", "XOM"): [*yearly("net income", 2021, (23040, 55740, 36010, 33680))],
    ("Snap", "SNAP"): [*yearly("net loss", 2019, (1034, 945, 488, 1430, 1322, 698))],
    ("Home Depot", "HD"): [
        *yearly("revenue", 2021, (151157, 157403, 152669), FISCAL),
        *yearly("net income", 2021, (16433, 17105, 15143), FISCAL),
    ],
    ("Lucid", "LCID"): [*yearly("net loss", 2022, (1304, 2828, 2714))],
    ("McDonald's", "MCD"): [*yearly("net income", 2020, (4731, 7545, 6177, 8469, 8223))],
}

BY_SPLIT = {"train": TRAIN, "val": VAL, "test": TEST}
