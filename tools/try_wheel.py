"""Install the wheel of a folder into a fresh virtual environment and see that it works, away from the checkout."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
import venv


def try_wheel(folder: str) -> str | None:
    """None when the one wheel in `folder`, once installed, gives twistd its `qtwist` and the commands their help;
    else what is wrong."""
    wheels = glob.glob(os.path.join(folder, "*.whl"))
    if len(wheels) != 1:
        return f"{folder} should hold one wheel, not {len(wheels)}"
    with tempfile.TemporaryDirectory(prefix="qtwist-wheel-") as directory:
        venv.create(directory, with_pip=True)
        programs = os.path.join(directory, "bin")
        pip = [os.path.join(programs, "python"), "-m", "pip", "--disable-pip-version-check", "-qq"]
        subprocess.run([*pip, "install", os.path.abspath(wheels[0])], check=True)
        # Neither the checkout nor PYTHONPATH may help: what counts is what the wheel brings.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        listed = subprocess.run(
            [os.path.join(programs, "twistd"), "--help"],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if not any(line.split()[:1] == ["qtwist"] for line in listed.splitlines()):
            return "twistd --help does not list qtwist"
        for command in ("qtwist", "qmail-newu", "qmail-newmrh"):
            done = subprocess.run(
                [os.path.join(programs, command), "--help"],
                check=False,
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                return f"{command} --help ended with {done.returncode}: {done.stderr.strip()}"
    return None


if __name__ == "__main__":
    trouble = try_wheel(sys.argv[1])
    if trouble:
        sys.exit(f"try_wheel: {trouble}")
    print("the installed wheel lists qtwist in twistd --help")
