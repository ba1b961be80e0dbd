import json
import subprocess
import sys

from vlm_guard.cli.scenes import command


def test_scenes_command_writes_a_folder_and_a_sheet(tmp_path, capsys):
    command(tmp_path / "out", split="crowded", count=3, seed=11, sheet=tmp_path / "sheet.png", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["directory"] == str(tmp_path / "out") and said["count"] == 3 and said["split"] == "crowded"
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 3
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_scenes_need_no_torch(tmp_path):
    code = (
        "import sys; from vlm_guard.eval.scenes import write_scenes; "
        f"write_scenes({str(tmp_path / 'out')!r}, 'common', 1); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
