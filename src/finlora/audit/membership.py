"""Whether a model has probably been trained on the texts of a test: Min-K%++ of them against fresh texts of the same kind.

For each token x_t with the model's p over the vocabulary,

    z_t = (log p(x_t) - mu_t) / sigma_t,    mu_t = sum_v p(v) log p(v),    sigma_t^2 = sum_v p(v) (log p(v))^2 - mu_t^2

and a text's score is the mean of the lowest K% of its z_t: a text that was learnt is a local maximum of p, so even its
unlikeliest tokens stand high.  Source: Zhang et al. 2024 (arXiv 2404.02936), K = 20.

The figure is the chance that a test text scores above a fresh one (AUC), with DeLong's interval (DeLong et al. 1988).  It is a
hint, and only as good as the match: each test text is set against a fresh text of about its length, but topic,
style and date are the caller's to match, and a difference in those moves the AUC as membership does.

Shapes: z_T (T,) of one text; logits in chunks of positions (P, V).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from .. import data
from .. import model as models
from ..errors import FinloraError
from ..text import Tokens, document, fit
from .findings import Finding

SHARE = 0.2
CHUNK = 256  # positions whose logits are formed at once
LEAST = 20  # texts of each side without which nothing is said
SHORTEST = 8  # tokens


def min_k_plus_plus(model: models.Model, texts: Sequence[str], share: float = SHARE, row_tokens: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """(score of each text, its tokens), float64 (N,) and long (N,); nan for a text of fewer than 8 tokens. Longer texts lose their beginning."""
    room = min(row_tokens, model.max_tokens - 1)
    scores, sizes = np.full(len(texts), np.nan), np.zeros(len(texts), dtype=int)
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            for k, text in enumerate(texts):
                tokens = _short(document(text, model.tokenizer, str(k)), room)
                sizes[k] = len(tokens)
                if len(tokens) >= SHORTEST:
                    z = np.sort(_z(model, tokens))
                    scores[k] = z[: max(1, round(share * len(z)))].mean()
    finally:
        model.train(was)
    return scores, sizes


def _short(tokens: Tokens, room: int) -> Tokens:
    return fit(Tokens(tokens.ids[: room + 1], tokens.weights[: room + 1], tokens.id), room)


def _z(model: models.Model, tokens: Tokens) -> np.ndarray:
    batch = data.collate([[tokens]]).to(model.device)
    h_TD = models.hidden(model, batch)[0]
    out = []
    for k in range(0, len(h_TD), CHUNK):
        log_PV = models.logits(model, h_TD[k : k + CHUNK]).log_softmax(-1)
        p_PV = log_PV.exp()
        mu_P = (p_PV * log_PV).sum(-1)
        var_P = (p_PV * log_PV.square()).sum(-1) - mu_P.square()
        said_P = log_PV.gather(-1, batch.targets[0, k : k + CHUNK, None])[:, 0]
        out.append((said_P - mu_P) / var_P.clamp_min(1e-12).sqrt())
    return torch.cat(out).double().cpu().numpy()


def auc(test: np.ndarray, fresh: np.ndarray) -> tuple[float, float, float]:
    """(AUC, low, high): the chance that a test score is above a fresh one, ties half, with DeLong's 95% interval on the logit scale."""
    above = (test[:, None] > fresh[None, :]) + 0.5 * (test[:, None] == fresh[None, :])
    value = float(above.mean())
    spread = above.mean(1).var(ddof=1) / len(test) + above.mean(0).var(ddof=1) / len(fresh)
    inner = min(max(value, 0.5 / len(test)), 1 - 0.5 / len(test))
    half = 1.96 * math.sqrt(spread) / (inner * (1 - inner))
    logit = math.log(inner / (1 - inner))
    low, high = (1 / (1 + math.exp(-x)) for x in (logit - half, logit + half))
    return value, low, high


def matched(test: np.ndarray, fresh: np.ndarray) -> tuple[list[int], list[int]]:
    """Indices of pairs of about one length, each fresh text used once: within a fifth, or two tokens, of the test text's."""
    left = sorted(range(len(fresh)), key=lambda j: (fresh[j], j))
    a, b = [], []
    for i in sorted(range(len(test)), key=lambda i: (test[i], i)):
        j = min(left, key=lambda j: abs(int(fresh[j]) - int(test[i])), default=None)
        if j is not None and abs(int(fresh[j]) - int(test[i])) <= max(2, test[i] // 5):
            a.append(i)
            b.append(j)
            left.remove(j)
    return a, b


def hint(model: models.Model, texts: Sequence[str], fresh: Sequence[str], what: str, name: str = "") -> Finding:
    """The finding about a test's texts under a model, against fresh texts.

    Raises: FinloraError where fewer than 20 texts of each side can be paired by length.
    """
    texts, fresh = list(dict.fromkeys(texts)), [t for t in dict.fromkeys(fresh) if t not in set(texts)]
    (a, n_a), (b, n_b) = min_k_plus_plus(model, texts), min_k_plus_plus(model, fresh)
    use_a, use_b = np.flatnonzero(~np.isnan(a)), np.flatnonzero(~np.isnan(b))
    left, right = matched(n_a[use_a], n_b[use_b])
    if len(left) < LEAST:
        raise FinloraError(f"only {len(left)} of {len(texts)} texts have a fresh text of about their length", f"give {LEAST} or more fresh texts as long as the test's, of {SHORTEST} tokens at least")
    value, low, high = auc(a[use_a][left], b[use_b][right])
    said = "higher than fresh texts" if low > 0.5 else "lower than fresh texts" if high < 0.5 else "like fresh texts"
    return Finding(
        "membership", "warning" if low > 0.6 else "note", what,
        f"{name or model.name} scores the test's texts {said}: Min-{SHARE:.0%}++ AUC {value:.3f} [{low:.3f}, {high:.3f}] over {len(left):,} pairs of about one length",
        count=len(left), advice="above 0.5 hints at texts seen in training, if the fresh texts match in topic, style and date" if low > 0.5 else "",
        figures=(("auc", value), ("low", low), ("high", high), ("pairs", len(left))),
    )  # fmt: skip
