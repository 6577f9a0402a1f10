"""The answer to a question of financial maths, worked out from its own numbers by the formula that its prompt names.

    solve("Simple Interest", "What interest does $200 at 5% a year earn in 3 years?")     30.0
    solve("Put-Call Parity", a question that asks for both prices)                        nan: its numbers do not decide it
    solve("Present Value (PV)", a question in words that are not known)                   None: cannot tell

Numbers are given to the formula's variables by the words beside them (_amounts.py), all numbers to all variables or none, so
that a question with a number more or less is left alone.  The families whose questions change shape (cash flows, annuities,
unemployment, parities) have rules of their own.  No answer is looked up.  Written on the training questions, 743 of 800 of which
it can tell; where the words of the formula leave two readings, as with a rise of working capital, it does not try.
"From A to B" counts as B where only one is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

from ._amounts import Amount, amounts, assign, settled

LONGEST = 2000  # characters of a question
MOST = 1000  # years of payments

def solve(name: str, question: str) -> float | None:
    """The answer by the formula of that name; a percentage as its formula gives it, 5.45 for 5.45% where that multiplies by 100.

    None where the question cannot be read with certainty, nan where it can and its numbers do not decide the answer.
    """
    rule, text = RULES.get(name), " ".join(question.replace("’", "'").split())
    if rule is None or len(text) > LONGEST or not all(math.isfinite(a.value) for a in amounts(text)):
        return None
    try:
        answer = rule(text)
    except (ArithmeticError, ValueError):  # no rate of -100%, no logarithm of nothing
        return None
    return answer if isinstance(answer, float) and not math.isinf(answer) else None


Rule = Callable[[str], "float | None"]


def _by(value: Callable[..., float], **wanted: str) -> Rule:
    """A rule of variables, each as "kinds words": m money, r rate, t time, p plain."""
    table = {name: tuple(told.split(" ", 1)) for name, told in wanted.items()}

    def rule(text: str) -> float | None:
        given = assign(text, settled(text, amounts(text)), table)
        return None if given is None else value(**given)

    return rule


def _first(*rules: Rule) -> Rule:
    """The first rule that can tell."""

    def rule(text: str) -> float | None:
        return next((x for r in rules if (x := r(text)) is not None), None)

    return rule


def _one(found: Sequence[Amount], kind: str) -> Amount | None:
    """The only amount of a kind, None where there are several or none."""
    own = [a for a in found if a.kind == kind]
    return own[0] if len(own) == 1 else None


# -- money and time ----------------------------------------------------------------------------------------------------

_OFTEN = (("continuous", 0), ("daily", 365), ("weekly", 52), ("month", 12), ("quarter", 4), ("semi", 2), ("bi-annual", 2), ("biannual", 2), ("half-year", 2))
_LEVEL = re.compile(r"^\s*(?:(?:dollars )?(?:every year|each year|per year|a year|annually|annual\b(?! (?:interest|discount|rate))|for each|at the end of each))")
_YIELDS = re.compile(r"(?:annual|yearly)(?: net)? (?:cash )?(?:inflows?|flows?|cash flows?|benefits?|returns?|payments?)(?: of)? $")
_COST = re.compile(r"(?:costs?|cost of|proposition of|investment of|outlay of|invests?)\s$")


def _often(text: str, default: int = 1) -> int:
    """Periods a year that the words name, 0 for continuous compounding."""
    return next((n for word, n in _OFTEN if word in text.lower().replace("bi-monthly", "")), default)


def _plain_three(text: str) -> tuple[float, float, Amount] | None:
    """(money, rate, time) where there is one of each and nothing else."""
    found = amounts(re.sub(r"\(n ?= ?\d+\)", "", text))
    money, rate, time = (_one(found, kind) for kind in ("money", "rate", "time"))
    return (money.value, rate.value, time) if money and rate and time and len(found) == 3 else None


def _annuity(payment: float, rate: float, n: float) -> float:
    return payment * (1 - (1 + rate) ** -n) / rate


def _net_present_value(text: str) -> float | None:
    found, low = amounts(text), text.lower()
    rate, money = _one(found, "rate"), [a for a in found if a.kind == "money"]
    times = [a for a in found if a.kind == "time"]
    if rate is None or not money or re.search(r"six months|semi|quarter|monthly", low):
        return None
    i = rate.value
    if not times:  # a flow for each year that is named
        named = re.findall(r"\b(?:first|second|third|fourth|fifth|next|following|final|last) year", low)
        if len(found) != len(money) + 1 or len(named) != len(money) or len(money) < 2 or "immediate" in low:
            return None
        return sum(a.value / (1 + i) ** (k + 1) for k, a in enumerate(money))
    if len(times) != 1 or times[0].unit != "year" or len(found) != len(money) + 2:
        return None
    n, due = round(times[0].value), "immediate" in low
    if n > MOST:
        return None
    steps = [a for a in money if re.search(r"(?:increas|decreas)\w*(?: \w+)? by $", low[: a.start])]
    costs = [a for a in money if a not in steps and (_COST.search(low[: a.start]) or re.match(r"\s(?:upfront|now|today|initially)\b", low[a.end :]))]
    flows = [a for a in money if a not in steps and a not in costs]
    if len(flows) != 1 or len(steps) > 1 or len(costs) > 1 or (due and (steps or costs)):
        return None
    if re.search(r"initial investment|initial cost|upfront cost", low) and not costs:
        return math.nan  # a cost that is not told
    step = 0.0 if not steps else -steps[0].value if "decreas" in low else steps[0].value
    flow = flows[0].value
    value = sum((flow + k * step) / (1 + i) ** (k + (0 if due else 1)) for k in range(n))
    return value - (costs[0].value if costs else 0.0)


def _future_value(text: str) -> float | None:
    found = amounts(text)
    money, rate = _one(found, "money"), _one(found, "rate")
    rest = [a for a in found if a not in (money, rate)]
    if money is None or rate is None or len(rest) != 1 or rest[0].kind not in ("time", "plain"):
        return None
    periods = rest[0].value if rest[0].kind == "plain" else rest[0].value * _often(text[: rate.start])
    whole = round(periods)
    return money.value * (1 + rate.value) ** (whole if abs(periods - whole) < 1e-6 else periods)


def _present_value(text: str) -> float | None:
    found, low = amounts(text), text.lower()
    rate, money, times = _one(found, "rate"), [a for a in found if a.kind == "money"], [a for a in found if a.kind == "time"]
    if rate is None or any(t.unit != "year" for t in times) or len(found) != 1 + len(money) + len(times):
        return None
    i = rate.value
    if len(money) == len(times) == 1:
        if _LEVEL.match(low[money[0].end :]):
            return _annuity(money[0].value, i, times[0].value)
        if "continuous" in low:
            return money[0].value * math.exp(-i * times[0].value)
        return None if re.search(r"\beach year|every year", low) else money[0].value / (1 + i) ** times[0].value
    if len(money) == 1 and len(times) == 2 and _LEVEL.match(low[money[0].end :]):
        start = next((t for t in times if re.search(r"(?:starting|beginning|starts|begins) in $", low[: t.start])), None)
        length = next((t for t in times if low[: t.start].endswith("for ")), None)
        return _annuity(money[0].value, i, length.value) / (1 + i) ** (start.value - 1) if start and length else None
    pairs = list(zip(money, times))
    if len(money) == len(times) and all(low[m.end : t.start].strip() == "in" for m, t in pairs):
        return sum(m.value / (1 + i) ** t.value for m, t in pairs)
    return None


def _compound(text: str) -> float | None:
    given = _plain_three(text)
    if given is None:
        return None
    principal, rate, time = given
    n = _often(text)
    return principal * (1 + rate / n) ** (n * time.value) if n else principal * math.exp(rate * time.value)


def _simple(text: str) -> float | None:
    given = _plain_three(text)
    return None if given is None else given[0] * given[1] * given[2].value


def _effective(text: str) -> float | None:
    found = [a for a in amounts(re.sub(r"\(n ?= ?\d+\)", "", text)) if a.kind != "money"]
    if len(found) != 1 or found[0].kind != "rate":
        return None
    n = _often(text, 1 if re.search(r"annually compound|compound\w*(?: interest)? (?:annually|yearly|once)|annual compounding", text.lower()) else -1)
    return None if n < 0 else (1 + found[0].value / n) ** n - 1 if n else math.exp(found[0].value) - 1


# -- families whose questions change shape -------------------------------------------------------------------------------


def _quick(text: str) -> float | None:
    none = re.search(r"(?:without any|no) inventor", text.lower())
    assets, due = "m current assets", "m liabilit"
    return _by(lambda A, L: A / L, A=assets, L=due)(text) if none else _by(lambda A, I, L: (A - I) / L, A=assets, I="m inventor", L=due)(text)


def _cash_flow(text: str) -> float | None:
    """A rise of working capital is added by the formula and subtracted in practice: only a change with its sign decides."""
    low = text.lower()
    income, wear = "m net income", "m dep\\w*tion"
    if re.search(r"no changes? in working", low):
        return _by(lambda N, D: N + D, N=income, D=wear)(text)
    if re.search(r"(?:in|de)creas|ris|rose|hik|fall|fell|declin|surge|reduc|grow|decrement|increment|drop|shift", low):
        return None
    return _by(lambda N, D, W: N + D + W, N=income, D=wear, W="m working capital")(text)


def _capitalisation(text: str) -> float | None:
    if re.search(r"issu\w+ an additional|additional", text.lower()) and len([a for a in amounts(text) if a.kind == "plain"]) == 1:
        return math.nan  # how many there were before is not told
    return _by(lambda N, S: N * S, N="p shares", S="m price|worth|each|trading")(text)


def _inflation(text: str) -> float | None:
    given = assign(text, amounts(text), {"last": ("p", r"last year|\bfrom\b"), "this": ("p", r"this year|\bto\b|risen|rising|increas\w*|reached|grown|surged")})
    return None if given is None else (given["this"] - given["last"]) / given["last"] * 100


def _unemployment(text: str) -> float | None:
    low, raw = text.lower(), amounts(text)
    found = settled(text, raw)
    rates, counts = [a for a in raw if a.kind == "rate"], [a for a in found if a.kind == "plain"]
    if len(rates) + len([a for a in raw if a.kind == "plain"]) != len(raw):
        return None
    asks = re.search(r"how many|number of individuals unemployed|what does the new labor force", low)
    if not rates and re.search(r"no change in the number of unemployed", low):
        return math.nan  # how many there are is not told
    if not rates and not asks and not re.search(r"\bmore\b|rise by|percentage drop|expands", low):
        table = {"U": ("p", r"unemployed|out of jobs|jobless|out of work"), "L": ("p", r"labor force|workers")}
        given = assign(text, found, table)
        return None if given is None else given["U"] / given["L"] * 100
    if not asks or len(counts) != 1:
        return None
    n = counts[0].value
    if len(rates) == 2 and re.search(r"from [\d.]+% to [\d.]+%", low):
        return n * abs(rates[1].value - rates[0].value)
    if len(rates) != 1:
        return None
    if re.search(r"number of employed people", low):
        return n / (1 - rates[0].value) if "new labor force" in low else None
    if re.search(r"people are employed", low):
        return n * (1 - rates[0].value)
    return n * rates[0].value if "labor force" in low and "more" not in low else None


_COUNTRIES = {
    "USD": r"\bu\.?s\.?\b|united states|\busa\b|america", "EUR": r"euro ?zone|\beu\b|europe|germany|france", "GBP": r"\buk\b|united kingdom|brit", "JPY": "japan",
    "NOK": "norw", "BRL": "brazil", "TRY": "turk", "NZD": "new zealand", "CAD": "canad", "AUD": "austral", "RUB": "russia", "MXN": "mexic", "ZAR": "south africa",
    "CHF": "switz|swiss", "SEK": "swed", "CNY": "chin", "INR": "india", "KRW": "korea", "SGD": "singapor", "HKD": "hong kong", "DKK": "danish|denmark", "PLN": "poland|polish",
}  # fmt: skip


def _forward(text: str) -> float | None:
    """spot ((1 + i of the first currency's country) / (1 + i of the second's))^years; of no horizon, one year."""
    pair = re.search(r"\b([A-Z]{3})/([A-Z]{3})\b", text)
    if pair is None or any(code not in _COUNTRIES for code in pair.groups()) or "respectively" in text:
        return None
    found = amounts(text)
    times = {round(a.value, 9) for a in found if a.kind == "time"}
    if len(times) > 1:
        return None
    codes = re.compile(r"\b[A-Z]{3}\b")
    bare = codes.sub("   ", text)
    table = {"S": ("p", "spot"), "d": ("r", _COUNTRIES[pair[1]]), "f": ("r", _COUNTRIES[pair[2]])}
    if not all(re.search(table[name][1], bare.lower()) for name in "df"):
        return None
    given = assign(bare, [a for a in found if a.kind != "time"], table)
    if given is None:
        return None
    return given["S"] * ((1 + given["d"]) / (1 + given["f"])) ** next(iter(times), 1.0)


def _parity(text: str) -> float | None:
    """A rate, or a second country's price level beside one that has both, from the other three of S_0, S_1, P_0 and P_1.

    The formula does not say whose level is whose: where each country has one, either reading can be meant.
    """
    told = re.findall(r"\b([SP]_[01])\)?(?: ?(?:=|:|was|is|of|at|set at|being)){0,2} ?(-?\d[\d,]*(?:\.\d+)?)?", text)
    given = {name: float(value.replace(",", "")) for name, value in told if value}
    asked = [name for name, value in told if not value]
    if not asked or len([a for a in amounts(text) if a.kind != "time"]) != len([1 for _, value in told if value]):
        return None
    want = asked[-1]
    known = {name: value for name, value in given.items() if name != want}
    if len(known) != 3 or (want.startswith("P") and want not in given):
        return None
    other = {"S_1": ("S_0", "P_1", "P_0"), "S_0": ("S_1", "P_0", "P_1"), "P_1": ("P_0", "S_1", "S_0"), "P_0": ("P_1", "S_0", "S_1")}[want]
    return known[other[0]] * known[other[1]] / known[other[2]]


_OPTION = {"C": r"\(c\)|call", "P": r"\(p\)|\bput\b", "S": r"\(s\)|underlying|\bstock|asset", "X": r"\(x\)|strike|exercise"}


def _put_call(text: str) -> float | None:
    found, low = amounts(text), text.lower()
    money, rate, time = [a for a in found if a.kind == "money"], _one(found, "rate"), _one(found, "time")
    changes = len([a for a in found if a.kind == "rate"]) > 1 or re.search(r"\baffects?|\bchanges?\b", low)
    both = re.search(r"call[^,.?]* and (?:the )?put", low)
    if len(money) == 2 and assign(text, money, {k: ("m", _OPTION[k]) for k in "SX"}) and both and "difference" not in low:
        return math.nan  # one equation does not give two prices
    if rate is None or time is None or changes or len(found) != len(money) + 2:
        return None
    discount = (1 + rate.value) ** -time.value
    if len(money) == 2 and "difference" in low:
        given = assign(text, money, {k: ("m", _OPTION[k]) for k in "SX"})
        return None if given is None else given["S"] - given["X"] * discount
    if len(money) != 3 or "difference" in low:
        return None
    asked = _asked(low)
    if asked is None:
        return None
    given = assign(text, money, {k: ("m", words) for k, words in _OPTION.items() if k != asked})
    if given is None:
        return None
    C, P, S, X = (given.get(k, 0.0) for k in "CPSX")
    return {"C": S - X * discount + P, "P": C - S + X * discount, "S": C - P + X * discount, "X": (S - C + P) / discount}[asked]


def _asked(low: str) -> str | None:
    """The variable of an option's parity that is asked for: the first named behind the verb or question word that asks."""
    verb = re.search(r"\b(?:calculate|compute|determine|find|estimate|identifying|what)\b", low)
    if verb is None:
        return None
    places = {k: m.start() for k, words in _OPTION.items() if (m := re.search(words, low[verb.end() :]))}
    return min(places, key=places.__getitem__, default=None)


def _call_option(S: float, X: float, r: float, t: float, v: float) -> float:
    N = NormalDist().cdf
    d = (math.log(S / X) + (r + v * v / 2) * t) / (v * math.sqrt(t))
    return S * N(d) - X * math.exp(-r * t) * N(d - v * math.sqrt(t))


def _investment(text: str) -> float | None:
    if re.search(r"annual|each year|yearly|increas|additional|after (?:two|three|four|five|six) years,? (?:the )?roi|save", text.lower()):
        return None
    found = [a for a in amounts(text) if a.kind != "time"]
    table = {"c": ("m", r"\binvest(?:s|ed|ing)?\b|spends?|spent|\bbuys?|\bcosts?\b|\bputs\b"), "g": ("m", r"\bsells?|revenue|receives?|\bworth|generat|earn|mak(?:e|es)\b|gross|value|sales|royalt")}
    given = assign(text, found, table)
    return None if given is None else (given["g"] - given["c"]) / given["c"]


_EARNED = r"net income|\bearn(?:s|ed|ing)?\b|\bmade|\bposts|\bnet\b"
_EBITDA = r"m (?<!/)ebi?t?i?d?t?da|operating profits"
_FREE = r"risk[- ]free|\(r_f\)|treasury|safe rate|lending rate|saving rate|bond yield|base rate|government"
_RETURN = r"\(r_p\)|\breturn|yield|gain|growth"

RULES: Mapping[str, Rule] = {
    "Net Present Value (NPV)": _net_present_value,
    "Future Value (FV)": _future_value,
    "Present Value (PV)": _present_value,
    "Compound Interest": _compound,
    "Simple Interest": _simple,
    "Annual Percentage Rate (APR)": _by(lambda F, I, P, t: (F + I) / P / t, F=r"m \bfees?\b", I="m interest", P="m loan(?! fee| duration| term)|borrow|principal", t="t day"),
    "Effective Annual Rate (EAR)": _effective,
    "Earnings Per Share (EPS)": _by(lambda N, D, S: (N - D) / S, N=f"m {_EARNED}", D="m prefer", S=r"p \bshares|stock count"),
    "Price-to-Earnings Ratio (P/E Ratio)": _by(lambda P, E: P / E, P="m market value|price|trading|valued", E=r"m earning|\beps\b"),
    "Return on Investment (ROI)": _investment,
    "Debt-to-Equity Ratio": _by(lambda L, E: L / E, L="m liabilit", E="m equity"),
    "Current Ratio": _by(lambda A, L: A / L, A="m current assets", L="m liabilit"),
    "Quick Ratio (Acid-Test Ratio)": _quick,
    "Operating Cash Flow (OCF)": _cash_flow,
    "Free Cash Flow (FCF)": _by(lambda O, C: O - C, O=r"m operat|cash flows?|\bmade\b|\bearned", C=r"m capital expend|spen[dt]|invest(?:s|ed|ing)?\b|expenditures|directed"),
    "Gross Profit Margin": _by(lambda R, C: (R - C) / R * 100, R=r"m revenue|\bsales\b|\bearned|\bfees|\bmade\b", C=r"m \bcosts?\b|\bcost of|spent|spends|expenses|incurr"),
    "Operating Margin": _by(lambda I, R: I / R * 100, I="m income", R="m revenue|sales"),
    "Net Profit Margin": _by(lambda P, R: P / R * 100, P="m net profit", R="m revenue|sales"),
    "Return on Assets (ROA)": _by(lambda I, A: I / A * 100, I="m income", A="m assets"),
    "Return on Equity (ROE)": _by(lambda I, E: I / E * 100, I="m income|profit", E="m equity"),
    "Inventory Turnover": _by(lambda C, I: C / I, C="m cost of goods|cogs", I=r"m inventory(?! turn)"),
    "Days Sales Outstanding (DSO)": _first(
        _by(lambda R, S, t: R / S * t * 365, R=r"m receivable|\bowed", S="m sales(?! out)", t="t day"),
        _by(lambda R, S, n: R / S * n, R=r"m receivable|\bowed", S="m sales(?! out)", n="p number of days"),
    ),
    "Accounts Receivable Turnover": _by(lambda S, R: S / R, S="m sales", R="m receivables?(?! turn)"),
    "Debt Service Coverage Ratio (DSCR)": _by(lambda I, D: I / D, I=r"m operating income|\bnoi\b", D="m debt"),
    "Capital Asset Pricing Model (CAPM)": _by(lambda f, m, b: f + b * (m - f), f=f"r {_FREE}", m="r market", b="p beta|β"),
    "Dividend Yield": _by(lambda D, P: D / P, D=r"m dividends?(?! yield)|distribut|\bpays", P=r"m \bpriced?\b|trading|worth|valued|each share"),
    "Dividend Payout Ratio": _by(lambda D, E: D / E, D="m dividends?(?! payout)", E=r"m earn|\beps\b"),
    "Interest Coverage Ratio": _by(lambda E, I: E / I, E=r"m \bebit\b|before", I=r"m interest (?:expense|cost|payment)|in interest|as interest|interests? expense|interest"),
    "Working Capital": _by(lambda A, L: A - L, A="m assets|cash|inventory", L="m liabilit|short-term|debts|due|owes|obligation|creditor|payable"),
    "Market Capitalization": _capitalisation,
    "Price-to-Book Ratio (P/B Ratio)": _by(lambda P, B: P / B, P="m market price|stock was priced|share price", B="m book value"),
    "Enterprise Value (EV)": _by(lambda M, D, C: M + D - C, M="m market|equity", D=r"m debt|\bowes|borrowing|loans|bonds", C="m cash"),
    "EV/EBITDA": _first(
        _by(lambda V, E: V / E, V=r"m enterprise val|\bev\b(?!/)", E=_EBITDA),
        _by(lambda M, D, C, E: (M + D - C) / E, M="m market cap", D="m debt", C="m cash", E=_EBITDA),
    ),
    "Gross Domestic Product (GDP)": _by(lambda C, I, G, X, M: C + I + G + X - M, C="m consumption", I="m investment", G="m government", X="m export", M="m import"),
    "Inflation Rate": _inflation,
    "Unemployment Rate": _unemployment,
    "Balance of Trade": _by(lambda X, M: X - M, X="m export", M="m import"),
    "Interest Rate Parity (IRP)": _forward,
    "Purchasing Power Parity (PPP)": _parity,
    "Beta": _by(lambda c, v: c / v, c="p covariance", v="p (?<!co)variance"),
    "Sharpe Ratio": _by(lambda p, f, s: (p - f) / s, p=f"r {_RETURN}", f=f"r {_FREE}", s=r"r deviation|volatility|σ"),
    "Jensen's Alpha": _by(lambda i, f, m, b: i - (f + b * (m - f)), i=r"r actual|portfolio return|\(r_i\)", f=f"r {_FREE}", m=r"r market|\(r_m\)", b="p beta|β"),
    "Treynor Ratio": _by(lambda p, f, b: (p - f) / b, p=f"r {_RETURN}", f=f"r {_FREE}", b="p beta|β"),
    "Sortino Ratio": _by(lambda p, f, s: (p - f) / s, p=r"r \(r_p\)", f=r"r \(r_f\)", s="r σ"),
    "Modigliani–Miller Theorem": _by(lambda U, D, T: U + T * D, U=r"m unlevered|valued|valuation|\bworth\b|evaluated", D=r"m \bdebt|borrow", T="r tax"),
    "WACC (Weighted Average Cost of Capital)": _first(
        _by(lambda E, D, e, d, T: (E * e + D * d * (1 - T)) / (E + D), E="m equity", D="m debt", e="r equity", d="r debt", T="r tax"),
        _by(lambda E, D, V, e, d, T: (E * e + D * d * (1 - T)) / V, E="m equity", D="m debt", V="m total|capital", e="r equity", d="r debt", T="r tax"),
    ),
    "Dividend Discount Model (DDM)": _by(lambda D, r, g: D / (r - g), D="m dividend", r=r"r discount|required|\breturn|yield|demand", g="r grow|increas"),
    "Black-Scholes Option Pricing Model": _by(_call_option, S=r"m stock|asset|s_0", X=r"m exercise|strike|\bx\b", r=r"r risk-free|\br\b|interest", t=r"t time|expir|\bt\b", v="r volatility|σ"),
    "Put-Call Parity": _put_call,
    "Cost of Equity (Gordon Growth Model)": _by(lambda D, P, g: D / P + g, D="m dividends?(?! growth)", P="m price|priced|stock", g="r grow"),
}
