"""Published results on the same data and splits, to compare with.

Sources: Yang et al., "Breaking the Top-K Barrier" (SL@K), KDD 2025, arXiv 2508.05673, Table 2; for PSL's tanh and
atan Yang et al., "PSL", NeurIPS 2024, arXiv 2411.00163, Table 1, which is without Health.
"""

from __future__ import annotations

HEALTH, ELECTRONIC, GOWALLA = "amazon2014-health", "amazon2014-electronic", "gowalla"
DATASETS = (HEALTH, ELECTRONIC, GOWALLA)
# Made of these by benchmarks.study.shifted.
SHIFTED = {dataset: f"{dataset}-shifted" for dataset in (HEALTH, ELECTRONIC)}
SHORT_NAMES = {HEALTH: "Health", ELECTRONIC: "Electronic", GOWALLA: "Gowalla"}
SHORT_NAMES |= {shifted: f"{SHORT_NAMES[dataset]}, shifted" for dataset, shifted in SHIFTED.items()}
LOSS_NAMES = {
    "bpr": "BPR", "llpauc": "LLPAUC", "sl": "SL", "infonce": "InfoNCE", "dcl": "DCL", "advinfonce": "AdvInfoNCE",
    "bsl": "BSL", "psl-tanh": "PSL (tanh)", "psl-atan": "PSL (atan)", "psl-relu": "PSL (relu)", "slk": "SL@20",
    "talos": "Talos", "cw": "CW",
}  # fmt: skip

# (model, loss): (Recall@20, NDCG@20) on Health, Electronic, Gowalla. The SL@K paper does not
# state PSL's surrogate, but on the last two data sets its numbers are those of the PSL paper's relu, digit by digit.
_TABLE: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("mf", "bpr"): (0.1627, 0.1234, 0.0816, 0.0527, 0.1355, 0.1111),
    ("mf", "llpauc"): (0.1644, 0.1209, 0.0821, 0.0499, 0.1610, 0.1189),
    ("mf", "sl"): (0.1719, 0.1261, 0.0821, 0.0529, 0.2064, 0.1624),
    ("mf", "advinfonce"): (0.1659, 0.1237, 0.0829, 0.0527, 0.2067, 0.1627),
    ("mf", "bsl"): (0.1719, 0.1261, 0.0834, 0.0530, 0.2071, 0.1630),
    ("mf", "psl-tanh"): (None, None, 0.0832, 0.0535, 0.2088, 0.1646),
    ("mf", "psl-atan"): (None, None, 0.0832, 0.0535, 0.2087, 0.1646),
    ("mf", "psl-relu"): (0.1718, 0.1268, 0.0838, 0.0541, 0.2089, 0.1647),
    ("mf", "slk"): (0.1823, 0.1390, 0.0901, 0.0590, 0.2121, 0.1709),
    ("lightgcn", "bpr"): (0.1618, 0.1203, 0.0813, 0.0524, 0.1745, 0.1402),
    ("lightgcn", "sl"): (0.1691, 0.1235, 0.0823, 0.0526, 0.2068, 0.1628),
    ("lightgcn", "bsl"): (0.1691, 0.1236, 0.0823, 0.0526, 0.2069, 0.1628),
    ("lightgcn", "psl-tanh"): (None, None, 0.0825, 0.0532, 0.2091, 0.1648),
    ("lightgcn", "psl-atan"): (None, None, 0.0825, 0.0532, 0.2091, 0.1648),
    ("lightgcn", "psl-relu"): (0.1701, 0.1270, 0.0830, 0.0536, 0.2086, 0.1648),
    ("lightgcn", "slk"): (0.1783, 0.1371, 0.0903, 0.0591, 0.2128, 0.1729),
    ("xsimgcl", "bpr"): (0.1496, 0.1108, 0.0777, 0.0508, 0.1966, 0.1570),
    ("xsimgcl", "sl"): (0.1534, 0.1113, 0.0772, 0.0490, 0.2005, 0.1570),
    ("xsimgcl", "bsl"): (0.1649, 0.1201, 0.0800, 0.0507, 0.2037, 0.1597),
    ("xsimgcl", "psl-tanh"): (None, None, 0.0790, 0.0501, 0.2034, 0.1591),
    ("xsimgcl", "psl-atan"): (None, None, 0.0792, 0.0502, 0.2035, 0.1591),
    ("xsimgcl", "psl-relu"): (0.1579, 0.1143, 0.0801, 0.0507, 0.2037, 0.1593),
    ("xsimgcl", "slk"): (0.1753, 0.1332, 0.0869, 0.0571, 0.2095, 0.1717),
}


def published(dataset: str, model: str, loss: str) -> tuple[float, float] | None:
    """Return the published (Recall@20, NDCG@20), or None."""
    if dataset not in DATASETS or (model, loss) not in _TABLE:
        return None
    first = 2 * DATASETS.index(dataset)
    recall, ndcg = _TABLE[model, loss][first : first + 2]
    return None if recall is None or ndcg is None else (recall, ndcg)
