"""Surface families of the `tone` task. A family belongs to one logic and to one split; test families occur nowhere else.

Slots: {co} company, {tick} its ticker, {per}/{q} period, {X} {Y} two clauses in random order (past tense), {Xh} {Yh} as
headlines, {Xt} {Yt} as tweets, {Xn} {Yn} nominal, {M} metric, {v} value, {event}; the other slots are explained at the logic.
"""

# logic -> family id -> (split, patterns)
FAMILIES = {
    # one moving clause: metric polarity times direction; a metric without bearing is neutral
    "single": {
        "single-press": ("train", ("{co} said its {X} in {per}.", "In {per}, {co} said, its {X}.", "{co} told shareholders that its {X} over {per}.")),
        "single-headline": ("train", ("{co}: {Xh}", "{co} {q}: {Xh}", "{Xh} at {co}")),
        "single-tweet": ("train", ("${tick} {q}: {Xt}", "{q} numbers from ${tick}: {Xt}.", "${tick} {Xt}")),
        "single-note": ("train", ("Our note on {co}: {Xn} in {per}.", "{co} reported {Xn}.", "There was {Xn} at {co} in {per}.")),
        "single-val": ("val", ("Results from {co} for {per} show that its {X}.", "{co} has recorded {Xn} for {per}.")),
        "single-test-press": ("test", ("According to the accounts of {co} for {per}, its {X}.", "Figures out today from {co} show {Xn}.")),
        "single-test-tweet": ("test", ("JUST IN {Xt} ${tick}", "${tick} out with {q}. {Xt}.")),
    },
    # two clauses, one of which has no bearing; the other decides, unchanged is neutral
    "pair": {
        "pair-press": ("train", ("{co} said its {X} in {per}, while its {Y}.", "In {per}, {Xd} and {Yd} at {co}.", "{co} announced that its {X}; its {Y}.")),
        "pair-headline": ("train", ("{co}: {Xh}, {Yh}", "{co} {q}: {Xh}; {Yh}", "{Xh}, {Yh} at {co}")),
        "pair-tweet": ("train", ("${tick} {q}: {Xt}, {Yt}", "${tick} {Xt} / {Yt}", "{q} for ${tick}: {Xt} and {Yt}.")),
        "pair-note": ("train", ("Our note on {co}: {Xn} and {Yn} in {per}.", "{co} reported {Xn} and {Yn}.", "We see {Xn} at {co}, with {Yn}.")),
        "pair-but": ("train", ("Although its {X}, the {Y} at {co} in {per}.", "Its {X}, but {co} also said its {Y}.")),
        "pair-two": ("train", ("{co} spoke today. Its {X}. Its {Y}.", "Today ${tick} had news for {per}: {Xn}. It also had {Yn}.")),
        "pair-val": ("val", ("Results from {co} for {per} show that its {X} as its {Y}.", "{co} has recorded {Xn} next to {Yn}.")),
        "pair-test-press": ("test", ("According to the accounts of {co}, its {X} in {per}, and in the same period its {Y}.", "Shareholders of {co} read today that its {X}. The report adds that its {Y}.")),
        "pair-test-tweet": ("test", ("JUST IN ${tick}: {Xt} // {Yt}", "{Xt}. {Yt}. That is ${tick} for {q}.")),
        "pair-test-note": ("test", ("Two points from {co} for {per}: {Xn}, and {Yn}.", "After {Xn} and {Yn}, we met {co} for a short talk.")),
    },
    # a value against the forecast and against last year; only the surprise against the forecast decides
    "forecast": {
        "forecast-press": ("train", ("{co} reported {M} of {v} for {per}, {c1} {r1} and {c2} {r2}.", "At {v}, {M} of {co} in {per} came in {c1} {r1} and {c2} {r2}.")),
        "forecast-tweet": ("train", ("${tick} {q} {M} {v}, {c1} {r1}, {c2} {r2}", "${tick}: {M} {c1} {r1} and {c2} {r2}")),
        "forecast-note": ("train", ("We note {M} of {v} at {co}, a figure {c1} {r1}, though {c2} {r2}.", "{co} closed {per} with {M} {c1} {r1} but {c2} {r2}.")),
        "forecast-two": ("train", ("{co} spoke today. {M} of {v} came in {c1} {r1}. That was {c2} {r2}.",)),
        "forecast-val": ("val", ("Results from {co} put {M} at {v}: {c1} {r1}, and {c2} {r2}.",)),
        "forecast-test-press": ("test", ("{M} of {v}, {c1} {r1} and also {c2} {r2}: so ran the report of {co} for {per}.", "The {v} that {co} reported today as {M} for {per} is {c1} {r1} and {c2} {r2}.")),
        "forecast-test-tweet": ("test", ("JUST IN ${tick} {M} {v}. That is {c1} {r1} and {c2} {r2}.",)),
    },
    # moved by more, by less or by as much as forecast
    "surprise": {
        "surprise-press": ("train", ("{co} said its {X}, {than} analysts had forecast.", "In {per}, {X} at {co}, which was {than} the market had forecast.")),
        "surprise-note": ("train", ("Our note on {co}: {X}, {than} we had forecast.", "{co} told us that its {X}, {than} it had planned.")),
        "surprise-val": ("val", ("Results from {co} for {per}: its {X}, {than} the consensus forecast.",)),
        "surprise-test": ("test", ("According to {co}, its {X} over {per}. That is {than} analysts had forecast.", "${tick} {q}: {Xt}, {than} forecast")),
    },
    # not this but that: the second, true statement decides
    "denial": {
        "denial-press": ("train", ("{co} said its {m} did not {base}, as first reported, but {Z} in {per}.", "The {m} of {co} did not {base} in {per}: in fact {pro} {Z}.")),
        "denial-note": ("train", ("We had thought {co} would see its {m} {base}, but in {per} {pro} {Z}.", "Rather than {ing}, the {m} of {co} {Z}.")),
        "denial-two": ("train", ("Would the {m} of {co} {base} in {per}? No: {pro} {Z}.", "The {m} of ${tick} did not {base} today, {pro} {Z}.")),
        "denial-val": ("val", ("Results from {co}: its {m} did not {base}. In fact {pro} {Z}.",)),
        "denial-test": ("test", ("An earlier version said that the {m} of {co} would {base}; in {per} {pro} {Z}.", "Did the {m} of ${tick} {base} in {per}? No, {pro} {Z}.")),
    },
    # good and bad effect side by side; the sentence says which is larger
    "offset": {
        "offset-press": ("train", ("At {co}, {a} {rel} {b} in {per}.", "{co} said that {a} {rel} {b}.")),
        "offset-note": ("train", ("Our note on {co}: in {per} {a} {rel} {b}.",)),
        "offset-val": ("val", ("Results from {co} for {per} show how {a} {rel} {b}.",)),
        "offset-test": ("test", ("The effect of {a} {rel} that of {b}, according to {co}.", "${tick} {q}: {a} {rel} {b}")),
    },
    # an event without effect beside one moving clause
    "event": {
        "event-press": ("train", ("{co}, which {event}, said its {X} in {per}.", "{co} {event} and said its {X}.")),
        "event-note": ("train", ("Our note on {co}: it {event}. There was {Xn}.", "{Xn}, reported {co}, which {event}.")),
        "event-val": ("val", ("{co} {event}. Results for {per} show that its {X}.",)),
        "event-test": ("test", ("Shareholders of {co}, which {event}, read today that its {X}.", "${tick} {event}. Also in the report: {Xt}.")),
    },
    # real companies and their public figures; {was} {now} amounts, {Z} verb with the size of the change
    "public": {
        "public-press": ("train", ("{co} said its {m} for {per} {Z} to {now} from {was}.", "{m} at {co} {Z} to {now} in {per}.", "The {m} of {co}, {was} a year earlier, {Z} to {now} in {per}.")),
        "public-tweet": ("train", ("${tick} {per}: {m} {zt} to {now} from {was}", "${tick} {m} {zt} to {now}, {per}")),
        "public-level": ("train", ("{co} said its {m} for {per} was {now}.", "{m} at {co} in {per}: {now}.", "${tick} {per}: {m} {now}", "For {per}, {co} lists {m} of {now} in its filing.")),
        "public-val": ("val", ("Results from {co} for {per}: its {m} {Z} to {now} from {was}.",)),
        "public-level-val": ("val", ("Results from {co} for {per}: its {m} was {now}.",)),
        "public-test": ("test", ("According to its filing, the {m} of {co} {Z} to {now} in {per}, after {was} the year before.", "JUST IN {per} at ${tick}: {m} {zt} to {now}")),
        "public-level-test": ("test", ("According to its filing, the {m} of {co} in {per} came to {now}.", "JUST IN {per} at ${tick}: {m} {now}")),
    },
}

# split -> logic -> share of rows: train holds more plain texts, from which the rest can be learned
_HELD_OUT = {"single": 0.14, "pair": 0.31, "forecast": 0.15, "surprise": 0.06, "denial": 0.15, "offset": 0.05, "event": 0.08, "public": 0.06}
SHARES = {
    "train": {"single": 0.28, "pair": 0.27, "forecast": 0.13, "surprise": 0.04, "denial": 0.12, "offset": 0.04, "event": 0.06, "public": 0.06},
    "val": _HELD_OUT,
    "test": _HELD_OUT,
}
