"""Published scores, to stand beside ours: SCORES[benchmark][split][method][metric].

IFRNet*: the paper's (arXiv 2205.14620) with the published weights. Other methods, and IFRNet(re-run), whose scale is
not stated: from later papers' tables. repeat, average, dis: measured by the paper's protocols.
"""

TABLES = (
    """
method          Vimeo90K/test UCF101/test  SNU_FILM/easy SNU_FILM/medium SNU_FILM/hard SNU_FILM/extreme
IFRNet_S        35.59,0.9786  35.28,0.9691 39.96,0.9905  35.92,0.9792    30.36,0.9357  25.05,0.8582
IFRNet          35.80,0.9794  35.29,0.9693 40.03,0.9905  35.94,0.9793    30.41,0.9358  25.05,0.8587
IFRNet_L        36.20,0.9808  35.42,0.9698 40.10,0.9906  36.12,0.9797    30.63,0.9368  25.27,0.8609
repeat          -             31.27,0.9302 -             -               -             -
average         -             33.17,0.9520 -             -               -             -
dis             -             34.85,0.9663 -             -               -             -
SepConv         33.79         34.78        39.41         34.97           29.36         24.31
ToFlow          33.73         34.58        39.08         34.39           28.44         23.39
CAIN            34.65         34.91        39.89         35.61           29.90         24.78
AdaCoF          34.47         34.90        39.80         35.05           29.46         24.31
DAIN            34.71         34.99        39.73         35.46           30.17         25.09
BMBC            35.01         35.15        39.90         35.31           29.33         23.92
RIFE            35.62         35.28        40.06         35.75           30.10         24.84
SoftSplat       36.10         35.39        -             -               -             -
ABME            36.18         35.38        39.59         35.77           30.58         25.42
AMT-L           36.35         35.39        39.95         36.09           30.75         25.41
UPR-Net-LARGE   36.42         35.47        40.44         36.29           30.86         25.63
EMA-VFI(TTA)    36.64         35.48        39.98         36.09           30.94         25.69
VFIMamba(TTA)   36.64         35.45        40.51         36.40           30.99         25.79
""",
    """
method          Middlebury_Other/other
IFRNet_S        37.24,0.9851,1.995
IFRNet          37.50,0.9861,1.946
IFRNet_L        38.18,0.9875,1.846
repeat          24.75,0.8468,7.630
average         28.02,0.8796,5.736
dis             34.99,0.9745,2.376
""",
    """
method          GoPro/8x      Adobe240/8x   Xiph/2K  Xiph/4K  X_TEST/2K  X_TEST/4K
IFRNet          29.84,0.920   31.93,0.943   -        -        -          -
IFRNet(re-run)  -             -             36.00    33.99    31.53      30.46
""",
)
METRICS = ("psnr", "ssim", "ie")  # the order of the comma-separated values
RERUN = "(re-run)"

# Which of the protocols in evaluation.py a method's numbers are by; not known for methods that are not here.
PROTOCOLS = dict.fromkeys(("IFRNet_S", "IFRNet", "IFRNet_L", "repeat", "average", "dis"), "paper")
PROTOCOLS |= {"RIFE": "uint8", "EMA-VFI(TTA)": "ema"}

# This project's networks: parameters, and the paper's seconds per frame of 1280x720 on a V100.
PARAMETERS = {"IFRNet_S": 2_803_610, "IFRNet": 4_959_692, "IFRNet_L": 19_699_460}
SECONDS_720P = {"IFRNet_S": 0.019, "IFRNet": 0.025, "IFRNet_L": 0.079}


def _scores() -> dict:
    scores = {}
    for table in TABLES:
        (_, *columns), *rows = [line.split() for line in table.strip().splitlines()]
        for method, *cells in rows:
            for column, cell in zip(columns, cells):
                if cell != "-":
                    benchmark, split = column.split("/")
                    values = dict(zip(METRICS, map(float, cell.split(","))))
                    scores.setdefault(benchmark, {}).setdefault(split, {})[method] = values
    return scores


SCORES = _scores()
