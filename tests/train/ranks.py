"""Train the toy under a launcher; every rank leaves its weights and what its times learned.

usage: ranks.py FOLDER STEPS [bound]
"""

import hashlib
import os
import sys
from pathlib import Path

import toy

from fewstep.train.fit import fit

if __name__ == "__main__":
    out = Path(sys.argv[1])
    steps = int(sys.argv[2])
    if sys.argv[3:] == ["bound"]:
        goal, settings = toy.bound(), toy.config(steps, batch_size=16)
        model = fit(toy.wide(), toy.images(), goal, settings, out / "run", device="cpu")
        learned = goal.times.state()
    else:
        model, learned = toy.train(out / "run", steps, batch_size=16), {}
    parts = [*model.denoiser.state_dict().values(), *learned.values()]
    raw = b"".join(v.numpy().tobytes() for v in parts)
    (out / f"rank{os.environ['RANK']}").write_text(hashlib.sha256(raw).hexdigest())
