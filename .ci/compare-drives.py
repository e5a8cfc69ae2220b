"""Compares `tardigrade evaluate drives`, by calendar, with scikit-learn's HistGradientBoostingClassifier on a drive's
last values, their last changes, its hours and size. Both learn from what was known by 2016, and are asked at the same
instants later, those whose outcome is known. Needs python3-sklearn.

Usage: compare-drives.py TARDIGRADE DIRECTORY
"""
import csv
import datetime
import glob
import gzip
import json
import os
import subprocess
import sys

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score

VALUES = [f"smart_{k}" for k in (5, 10, 12, 187, 188, 189, 196, 197, 198)]
CUTOFF, HORIZON = datetime.date(2016, 1, 1), 30 * 24


def number(text):
    return float(text) if text else np.nan


lives = {}
for path in glob.glob(os.path.join(sys.argv[2], "*.csv*")):
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as f:
        for row in csv.DictReader(f):
            lives.setdefault(row["serial_number"], []).append(row)

x, drive, left, rest, late = [], [], [], [], []  # rest: hours until the drive was seen last; late: hours after the cutoff
fails = np.zeros(len(lives), bool)
for i, rows in enumerate(lives.values()):
    end, fails[i] = float(rows[-1]["tstop"]), rows[-1]["fails"] == "1"
    first = datetime.date.fromisoformat(rows[0]["min_date"])
    cutoff = float(rows[0]["tstart"]) + (CUTOFF - first).days * 24
    last = np.full(len(VALUES), np.nan)
    before = np.nan
    for row in rows:
        now, v = float(row["tstart"]), np.array([number(row[name]) for name in VALUES])
        x.append([*v, *(v - last), now, now - before, number(row["size_tb"])])
        drive.append(i)
        left.append(end - now if fails[i] else np.inf)
        rest.append(end - now)
        late.append(now - cutoff)
        last, before = v, now
x, drive, left, rest, late = np.array(x), np.array(drive), np.array(left), np.array(rest), np.array(late)
failing, soon = fails[drive], left <= HORIZON
# By the cutoff it is known of an instant that the drive failed, or that it was working for the whole horizon after it.
decided = np.where(failing & (left <= -late), True, np.minimum(rest, -late) >= HORIZON)
train = (late < 0) & decided
test = (late >= 0) & (failing | (rest >= HORIZON))

m = HistGradientBoostingClassifier(early_stopping=False, random_state=1).fit(x[train], soon[train])
p = m.predict_proba(x[test])[:, 1]
drive, left, soon, failing = drive[test], left[test], soon[test], failing[test]


def peaks(of):
    top = np.full(len(fails), -1.0)
    np.maximum.at(top, drive[of], p[of])
    return top


working = np.sort(peaks(~failing)[np.unique(drive[~failing])])[::-1]
heard = np.unique(drive[soon])  # failing drives that said something in the 30 days before
res = {"split": "calendar", "model": "scikit-learn", "auc_pr": average_precision_score(soon, p)}
for name, share in (("0.1pct", 0.001), ("1pct", 0.01)):
    alarm = p > working[int(share * len(working))]
    res[f"detected_at_far_{name}"] = np.isin(heard, drive[failing & alarm]).mean()
    res[f"detected_within_30d_at_far_{name}"] = np.isin(heard, drive[soon & alarm]).mean()
    for kind, of in (("", failing & alarm), ("_within_30d", soon & alarm)):
        lead = np.zeros(len(fails))
        np.maximum.at(lead, drive[of], left[of])
        res[f"median_lead_days{kind}_at_far_{name}"] = np.median(lead[lead > 0]) / 24
print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in res.items()}), flush=True)
out = subprocess.run([sys.argv[1], "evaluate", "drives", "--data", sys.argv[2], "--json"], check=True, capture_output=True, text=True).stdout
print(next(line for line in out.splitlines() if json.loads(line)["split"] == "calendar"))
