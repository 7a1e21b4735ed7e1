"""Loading a model runs no code, whatever lies in its folder: CK16."""

import json
import subprocess
import sys
from pathlib import Path


def test_nothing_runs_on_load(tmp_path):  # CK16
    program = f"""
import sys, pickle, json, os
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1] / "train")!r})
import toy
from fewstep.errors import FewstepError
from fewstep.train import checkpoint, sealed
class Evil:
    def __reduce__(self):
        return (os.system, ("touch {tmp_path}/owned",))
good = Path({str(tmp_path)!r}) / "good"
checkpoint.save_model(toy.model(), good)
checkpoint.load_model(good)  # everything is imported now
bad = Path({str(tmp_path)!r}) / "bad"
events = []
armed = False
watched = ("pickle.find_class", "exec", "import", "compile", "os.system", "subprocess.Popen")
def hook(event, args):
    if armed and event in watched:
        events.append([event, str(args)[:80]])
sys.addaudithook(hook)
said = []
for name in ("weights.safetensors", "model.json", "manifest.json", "x.pkl"):
    for sealing in (False, True):
        if bad.exists():
            import shutil; shutil.rmtree(bad)
        checkpoint.save_model(toy.model(), bad)
        (bad / name).write_bytes(pickle.dumps(Evil()))
        if sealing and name != "manifest.json":
            names = [p for p in bad.iterdir() if p.name != "manifest.json"]
            contents = {{p.name: p.read_bytes() for p in names}}
            (bad / "manifest.json").write_bytes(sealed._manifest(contents, None))
        armed = True
        try:
            checkpoint.load_model(bad)
        except FewstepError as e:
            said.append(e.exit_code)
        armed = False
armed = True
checkpoint.load_model(good)
armed = False
print(json.dumps([said, events]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, events = json.loads(done.stdout)
    assert said == [4] * 7  # an extra .pkl that the manifest lists is never opened at all
    assert events == []
    assert not (tmp_path / "owned").exists()
