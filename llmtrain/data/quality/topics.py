"""What the texts are about, without labels: TF-IDF, SVD (latent semantic analysis), k-means, by scikit-learn.

A text is the weighted counts of its words (Spärck Jones 1972), reduced to the directions in which texts differ most
(Deerwester et al. 1990); k-means groups these. The number of groups is that of the best silhouette (Rousseeuw 1987).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from llmtrain.data.quality.items import Item
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
WORD = r"(?u)\b[^\W\d_]{3,}\b"
"""A term: letters, three at least."""


@dataclass(frozen=True)
class Topic:
    """A group of texts."""

    terms: Sequence[str]  # those that are more frequent in it than elsewhere
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


def topics(items: Sequence[Item], num_sources: int, seed: int) -> Topics:
    """Group the items, or a part of them if they are many. Raises ValueError for too few, and without scikit-learn."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.metrics import silhouette_score
        from sklearn.preprocessing import normalize
    except ImportError:
        raise ValueError("the topic map needs scikit-learn: pip install 'llmtrain[data]'") from None
    chosen = [items[place] for place in _evenly(len(items), MOST_ITEMS)]
    if len(chosen) < FEWEST_ITEMS:
        raise ValueError(f"{counted(len(chosen), 'text')} cannot be grouped: at least {FEWEST_ITEMS} are needed")
    vectorizer = TfidfVectorizer(
        token_pattern=WORD,
        stop_words="english",
        min_df=2,
        max_df=0.5,
        max_features=MOST_TERMS,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        weights = vectorizer.fit_transform(item.text[:READ_CHARS] for item in chosen)
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
        near = members[np.argsort(np.linalg.norm(points[members] - best[1].cluster_centers_[label], axis=1))]
        counts = np.bincount([chosen[i].source for i in members], minlength=num_sources)
        terms = [str(names[i]) for i in np.argsort(-own)[:TOP_TERMS] if own[i] > 0]
        made.append(Topic(terms, len(members), counts.tolist(), [chosen[i] for i in near[:MOST_SHOWN]]))
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
