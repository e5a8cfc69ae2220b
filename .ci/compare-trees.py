"""Compares `tardigrade evaluate failure` with scikit-learn's HistGradientBoostingClassifier: the
same rows, 100 trees of 31 leaves, one thread each, CPU time. Needs python3-sklearn.

Usage: compare-trees.py TARDIGRADE
"""
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

FEATURES, TRAIN, TEST = 38, 80_000, 20_000


def clusters(seed, noise, share):
    return make_classification(
        TRAIN + TEST, FEATURES, n_informative=12, n_redundant=6, n_clusters_per_class=8,
        flip_y=noise, class_sep=0.7, weights=[1 - share], random_state=seed)


def counters(seed, missing):
    """Gauges, counters that are mostly 0, products of two features, values missing."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(TRAIN + TEST, FEATURES))
    x[:, 10:14] = np.round(np.exp(x[:, 10:14]), 1)
    x[:, 20:24] = (x[:, 20:24] > 1.3) * np.round(np.exp(x[:, 20:24]))
    z = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.5 * x[:, 3] ** 2 + 0.3 * x[:, 10] - 0.5 * x[:, 20]
    z += 0.6 * x[:, 4] * (x[:, 5] > 0) + 0.3 * x[:, 6:10].sum(1) - 1.5
    y = (r.random(len(z)) < 1 / (1 + np.exp(-z))).astype(int)
    x[r.random(x.shape) < missing] = np.nan
    return x, y


def write(path, x, y):
    header = ",".join(f"f{i}" for i in range(FEATURES)) + ",label"
    np.savetxt(path, np.c_[x, y], delimiter=",", fmt="%.17g", header=header, comments="")


print("data                     AUC ours  sklearn   log loss ours  sklearn   train   rows/s")
for name, (x, y) in {
    "clusters": clusters(1, 0.05, 0.5), "clusters, noisy": clusters(2, 0.2, 0.5), "clusters, 10 % positive": clusters(3, 0.05, 0.1),
    "counters": counters(4, 0), "counters, 15 % missing": counters(5, 0.15),
}.items():
    m = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=31, early_stopping=False)
    began = time.process_time()
    m.fit(x[:TRAIN], y[:TRAIN])
    train = time.process_time() - began
    began, scored = time.process_time(), 0
    while time.process_time() - began < 0.5:
        p = m.predict_proba(x[TRAIN:])[:, 1]
        scored += TEST
    score = scored / (time.process_time() - began)
    with tempfile.TemporaryDirectory() as tmp:
        write(f"{tmp}/train.csv", x[:TRAIN], y[:TRAIN])
        write(f"{tmp}/test.csv", x[TRAIN:], y[TRAIN:])
        out = subprocess.run(
            [sys.argv[1], "evaluate", "failure", "--csv", f"{tmp}/train.csv", "--test", f"{tmp}/test.csv", "--label", "label", "--json"],
            check=True, capture_output=True, text=True).stdout
    ours = json.loads(out.splitlines()[0])
    print(f"{name:24} {ours['auc']:.4f}    {roc_auc_score(y[TRAIN:], p):.4f}    {ours['log_loss']:.4f}         {log_loss(y[TRAIN:], p):.4f}"
          f"    {train / ours['train_s']:.1f} x   {ours['rows_per_s'] / score:.1f} x", flush=True)
