"""Train the toy under a launcher; every rank leaves its weights. usage: ranks.py FOLDER STEPS"""

import hashlib
import os
import sys
from pathlib import Path

import toy

if __name__ == "__main__":
    out = Path(sys.argv[1])
    model = toy.train(out / "run", int(sys.argv[2]), batch_size=16)
    raw = b"".join(v.numpy().tobytes() for v in model.denoiser.state_dict().values())
    (out / f"rank{os.environ['RANK']}").write_text(hashlib.sha256(raw).hexdigest())
