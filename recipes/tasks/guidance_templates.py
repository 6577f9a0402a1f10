"""Surface families of the `guidance` task. A family belongs to one logic and one split; test families occur nowhere else.

What is done to the guidance is {a} (finite), {ap} (participle), {ah} (headline), {it} (finite, object "it"), {gp} (passive).
What is done to something else or at another time is {b} {bp} {bh} {op}; {p} {pit} {ping} {pingit} an earlier step on the
guidance; {n} {nit} {ning} {ningit} a step that was not taken; {w} {wh} another company's step. {third} is an extra statement
on a third thing, put first or last, so that most texts hold raising, keeping and lowering words at once.
"""

FAMILIES = {
    # guidance and another object, each with its own verb
    "bind": {
        "bind-press": ("train", ("{co} {a} and {b}.", "{co} {b} and {a}.", "{co} said it {a}, while it {b}.", "In {mon}, {co} {b} but {a}.")),
        "bind-headline": ("train", ("{co} {ah}, {bh}", "{co} {bh}, {ah}", "{q} at {co}: company {bh}, {ah}")),
        "bind-tweet": ("train", ("${tick} {ah} and {bh}", "${tick} {q}: {bh}, also {ah}", "${tick} {op}, {gp}", "${tick} {gp}, {op}")),
        "bind-note": ("train", ("Our note on {co}: the {gp}, while the {op}.", "At {co} the {op} and the {gp}.", "{co} {a}; it also {b}.", "{co} {b} although it {a}.")),
        "bind-two": ("train", ("{co} spoke today. It {a}. It {b}.", "Today {co} {b}. It {a}.", "News of ${tick}: it {b}. It {a}.")),
        "bind-val": ("val", ("The board of {co} {b} in {mon}. It also {a}.", "The board of {co} {a} and, in {mon}, {b}.")),
        "bind-test-press": ("test", ("Having {bp}, {co} told shareholders that it {a}.", "{co} told shareholders on Monday that the {gp}, and that the {op}.", "On Monday the {op} at {co}. The {gp}.")),
        "bind-test-tweet": ("test", ("JUST IN ${tick} {ah}. It {bh}.", "JUST IN: ${tick} {bh}. It {ah}.")),
    },
    # an earlier step and the latest one; the latest decides
    "time": {
        "time-press": ("train", ("{co}, which {p} in {mon}, {it} in {mon2}.", "After {ping} in {mon}, {co} {it} in {mon2}.", "{co} {a} in {mon2}, having {pit} in {mon}.")),
        "time-note": ("train", ("In {mon} {co} {p}; in {mon2} it {it}.", "Our note on {co}: in {mon2} it {a}, where in {mon} it {pit}.", "{co} has now {ap}, after it had {pit} in {mon}.")),
        "time-two": ("train", ("{co} {p} in {mon}. It {it} in {mon2}.", "In {mon2} {co} {a}. It had {pit} in {mon}.", "Today ${tick} {it}, weeks after {ping}.")),
        "time-val": ("val", ("The board of {co} {p} in {mon}. In {mon2} it {it}.",)),
        "time-test": ("test", ("Back in {mon}, {co} {p}. On Monday it {it}.", "JUST IN ${tick} {a} on Monday. In {mon} it had {pit}.", "On Monday {co} {a}, only weeks after {pingit}.")),
    },
    # not this but that
    "denial": {
        "denial-press": ("train", ("{co} did not {n}, as first reported, but {it}.", "Rather than {ning}, {co} {it}.", "{co} {a} instead of {ningit}.")),
        "denial-note": ("train", ("We had thought that {co} would {n}, but it {it}.", "{co} chose not to {n} and {it}.", "{co} {a}, although we had thought it would {nit}.")),
        "denial-two": ("train", ("Would {co} {n}? No: today it {it}.", "{co} did not {n} today. It {it}.", "Today ${tick} {a} and did not {nit}.")),
        "denial-val": ("val", ("The board of {co} did not {n}. It {it}.",)),
        "denial-test": ("test", ("An earlier version said that {co} would {n}; in fact it {it}.", "Did ${tick} {n}? No, it {it}.", "{co} {a} on Monday. It did not {nit}.")),
    },
    # someone else moves their own guidance
    "actor": {
        "actor-press": ("train", ("{co} {a}, while {who} {w}.", "While {who} {w}, {co} {a}.", "{co} {a} after {who} {w}.")),
        "actor-headline": ("train", ("{co} {ah} as {who} {wh}", "As {who} {wh}, {co} {ah}")),
        "actor-two": ("train", ("{co} {a}. Today {who} {w}.", "Today {who} {w}. ${tick} {ah}.")),
        "actor-val": ("val", ("The board of {co} {a}. In {mon} {who} {w}.",)),
        "actor-test": ("test", ("On Monday {who} {w}; {co} told shareholders that it {a}.", "JUST IN ${tick} {ah}. Note that {who} {w} in {mon}.")),
    },
    # a call for a step, followed or not
    "call": {
        "call-press": ("train", ("Asked to {n}, {co} {yes} and {it}.", "Analysts wanted {co} to {n}, but it {no} and {it}.", "{co} {no} when asked to {n}: it {it}.")),
        "call-short": ("train", ("Asked in {mon} to {n}, {co} {agreed}.", "{co} was asked to {n} and {agreed}.")),
        "call-val": ("val", ("Asked by its board to {n}, {co} {yes}: it {it}.", "The board of {co} was asked to {n}, and {agreed}.")),
        "call-test": ("test", ("Shareholders wanted {co} to {n}. On Monday it {agreed}.", "${tick} was asked to {n}. It {no} and {it}.")),
    },
    # only numbers tell; {v} now, {v0} before
    "figures": {
        "figures-press": ("train", ("{co} now expects {m} of {v} for the year; in {mon} it had expected {v0}.", "In {mon} {co} had expected {m} of {v0} for the year. It now expects {v}.")),
        "figures-note": ("train", ("Our note on {co}: it now sees {m} of {v}, where in {mon} it saw {v0}.", "{co} expects {m} of {v}, against {v0} before.")),
        "figures-tweet": ("train", ("${tick} now sees {m} of {v}, before: {v0}", "${tick} {m} for the year: before {v0}, now {v}")),
        "figures-val": ("val", ("The board of {co} now expects {m} of {v}. Before, it had expected {v0}.",)),
        "figures-test": ("test", ("Back in {mon}, {co} had expected {m} of {v0}. On Monday it told shareholders that it now expects {v}.", "JUST IN ${tick} now expects {m} of {v}. In {mon} that was {v0}.")),
    },
}

_SHARES = {"bind": 0.36, "time": 0.18, "denial": 0.16, "actor": 0.14, "call": 0.06, "figures": 0.10}
SHARES = {"train": _SHARES, "val": _SHARES, "test": _SHARES}
PLAIN_THIRDS = {"train": 35, "val": 2, "test": 2}  # texts without a third statement, against five for each pattern below

# the third statement: (where, pattern) by split; {c} past with another object, {o3} {cit} {cn} the same
# in parts, {x} another company's step
THIRD = {
    "train": (
        ("first", "In {mon} {who3} {x}. "), ("first", "Earlier {who3} {x}. "), ("last", " It {c} as well."),
        ("last", " In the same week it {c}."), ("last", " In {mon} {who3} {x}."),
        ("last", " As to {o3}, it {cit}."), ("last", " It did well to {cn}."),
    ),
    "val": (("first", "Results are out. {who3} {x}. "), ("last", " The board {c} too.")),
    "test": (("first", "Last week {who3} {x}. "), ("last", " Note that it {c} last week."), ("last", " We hear that {who3} {x}."), ("last", " And {o3}? It {cit}."), ("last", " We like that it chose to {cn}.")),
}
