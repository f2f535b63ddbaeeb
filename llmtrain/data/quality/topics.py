"""What the texts are about, without labels: TF-IDF, SVD (latent semantic analysis), k-means, by scikit-learn.

A text is the weighted counts of its words (Spärck Jones 1972), reduced to the directions in which texts differ most
(Deerwester et al. 1990); k-means groups these. The number of groups is that of the best silhouette (Rousseeuw 1987).

Words are of three letters at least; in scripts without spaces, two letters in a row. Words that any text may have are
left out: of English those of scikit-learn's list, of another language those of many of its texts.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from llmtrain.data.quality.items import Item
from llmtrain.data.sources.ngrams import NO_SPACES
from llmtrain.system.counted import counted

READ_CHARS = 5_000
MOST_ITEMS = 10_000
FEWEST_ITEMS = 30
MOST_TERMS, DIMENSIONS = 20_000, 50
COUNTS = (3, 4, 6, 8, 10, 12, 15)
"""Numbers of groups that are tried."""
SILHOUETTE_ITEMS = 1_500
MAP_ITEMS = 600
TOP_TERMS, MOST_SHOWN = 10, 3
WORD = re.compile(rf"[{NO_SPACES}]{{2,}}|(?:(?![{NO_SPACES}])[^\W\d_])+")
WITHOUT_SPACES = re.compile(f"[{NO_SPACES}]")
FEWEST_LETTERS = 3
COMMON, FEWEST_COMMON = 0.2, 3
"""A word in so large a part of a language's texts, and in so many, is one that any text may have."""
NAMING = 0.15
"""A word names a group if so large a part of its texts have it."""


@dataclass(frozen=True)
class Topic:
    """A group of texts."""

    terms: Sequence[str]  # more frequent in it than elsewhere, and in many of its texts; may be none
    num_items: int
    by_source: Sequence[int]
    examples: Sequence[Item]  # nearest its centre


@dataclass(frozen=True)
class Topics:
    """The groups, the largest first."""

    topics: Sequence[Topic]
    num_items: int
    silhouette: float  # -1 to 1; near 0 groups run into each other
    variance: float  # share of the differences between texts that the SVD keeps
    places: Float[ndarray, "shown 2"]  # of some items on a map, by t-SNE
    place_topics: Int[ndarray, " shown"]


def topics(items: Sequence[Item], num_sources: int, seed: int, spoken: Sequence[str] | None = None) -> Topics:
    """Group the items, or a part of them if they are many. `spoken`: the language of each item, if it is known.

    Raises ValueError for too few, and without scikit-learn.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
        from sklearn.metrics import silhouette_score
        from sklearn.preprocessing import normalize
    except ImportError:
        raise ValueError("the topic map needs scikit-learn: pip install 'llmtrain[data]'") from None
    places = _evenly(len(items), MOST_ITEMS)
    chosen = [items[place] for place in places]
    if len(chosen) < FEWEST_ITEMS:
        raise ValueError(f"{counted(len(chosen), 'text')} cannot be grouped: at least {FEWEST_ITEMS} are needed")
    terms = [_terms(item.text[:READ_CHARS]) for item in chosen]
    if spoken is not None:
        terms = _without_common(terms, [spoken[place] for place in places])
    vectorizer = TfidfVectorizer(
        analyzer=lambda each: [term for term in each if term not in ENGLISH_STOP_WORDS],
        min_df=2,
        max_df=0.5,
        max_features=MOST_TERMS,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        weights = vectorizer.fit_transform(terms)
    except ValueError:  # no term is in two texts
        raise ValueError("the texts share no words that could group them") from None
    dimensions = min(DIMENSIONS, weights.shape[1] - 1, len(chosen) - 1)
    if dimensions < 2:
        raise ValueError("the texts share too few words to group them")
    svd = TruncatedSVD(dimensions, random_state=seed)
    points = normalize(svd.fit_transform(weights))
    some = np.array(_evenly(len(chosen), SILHOUETTE_ITEMS))
    best: tuple[float, Any] | None = None
    for count in (number for number in COUNTS if number <= max(COUNTS[0], len(chosen) // 20)):
        found = KMeans(count, n_init=2, random_state=seed).fit(points)
        labels = found.labels_[some]
        score = float(silhouette_score(points[some], labels)) if len(set(labels)) > 1 else -1.0
        if best is None or score > best[0]:
            best = score, found
    assert best is not None
    labels = best[1].labels_
    names = vectorizer.get_feature_names_out()
    mean = np.asarray(weights.mean(axis=0))[0]
    made = []
    sizes = np.bincount(labels, minlength=best[1].n_clusters)
    order = [int(label) for label in np.argsort(-sizes, kind="stable") if sizes[label]]
    for label in order:
        members = np.flatnonzero(labels == label)
        own = np.asarray(weights[members].mean(axis=0))[0] - mean
        own[weights[members].getnnz(axis=0) < max(2, NAMING * len(members))] = 0
        near = members[np.argsort(np.linalg.norm(points[members] - best[1].cluster_centers_[label], axis=1))]
        counts = np.bincount([chosen[i].source for i in members], minlength=num_sources)
        naming = [str(names[i]) for i in np.argsort(-own)[:TOP_TERMS] if own[i] > 0]
        made.append(Topic(naming, len(members), counts.tolist(), [chosen[i] for i in near[:MOST_SHOWN]]))
    shown = np.array(_evenly(len(chosen), MAP_ITEMS))
    ranks = {label: rank for rank, label in enumerate(order)}
    return Topics(
        topics=made,
        num_items=len(chosen),
        silhouette=best[0],
        variance=float(svd.explained_variance_ratio_.sum()),
        places=_map(points[shown], seed),
        place_topics=np.array([ranks[int(label)] for label in labels[shown]]),
    )


def _terms(text: str) -> list[str]:
    """The words of a text in lower case; of a run in a script without spaces, each two letters in a row."""
    found: list[str] = []
    for run in WORD.findall(text.lower()):
        if WITHOUT_SPACES.match(run):
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        elif len(run) >= FEWEST_LETTERS:
            found.append(run)
    return found


def _without_common(terms: Sequence[list[str]], spoken: Sequence[str]) -> list[list[str]]:
    """The words of each text but those that many texts of its language have; of English ones all, which are known."""
    of_language: defaultdict[str, list[list[str]]] = defaultdict(list)
    for each, language in zip(terms, spoken, strict=True):
        of_language[language].append(each)
    common: dict[str, set[str]] = {}
    for language, texts in of_language.items():
        counts = Counter(term for each in texts for term in set(each) if language != "English")
        least = max(FEWEST_COMMON, COMMON * len(texts))
        common[language] = {term for term, amount in counts.items() if amount >= least}
    return [
        [term for term in each if term not in common[language]] for each, language in zip(terms, spoken, strict=True)
    ]


def _map(points: Float[ndarray, "shown dimensions"], seed: int) -> Float[ndarray, "shown 2"]:
    """Places on a plane that keep neighbours together (t-SNE; van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE

    spread = min(30.0, (len(points) - 1) / 3)
    # Equal texts are equal points, which t-SNE takes; noise below any distance keeps its start from dividing by zero.
    jitter = np.random.default_rng(seed).normal(scale=1e-6, size=points.shape)
    tsne = TSNE(2, perplexity=spread, init="pca", max_iter=400, random_state=seed, n_jobs=1)
    result: Float[ndarray, "shown 2"] = tsne.fit_transform((points + jitter).astype(np.float32))
    return result


def _evenly(count: int, most: int) -> list[int]:
    """Up to so many places, evenly over all."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
