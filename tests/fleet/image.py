"""What is on a machine's disk when it is new: of the project nothing, of other packages what this Python has."""

import sys
import sysconfig
from pathlib import Path

from tests.conftest import ROOT

ENVIRONMENT = Path(sys.prefix).resolve()
"""The virtual environment that runs the tests."""

VISIBLE = (ENVIRONMENT, Path(sys.base_prefix), ROOT)


def home_with(folder: str) -> str:
    """Shell that makes a virtual environment in ``folder`` of the home: all that installing the project would download.

    The machines have no network to get packages from. Those of this Python can be imported and called there; the
    project, which is installed into it for editing, is not among them.
    """
    packages = Path(sysconfig.get_path("purelib")).resolve()
    python = f"{sys.base_prefix}/bin/python{sysconfig.get_python_version()}"
    return f"""
      {python} -m venv --without-pip {folder}
      echo {packages} >{folder}/lib/python{sysconfig.get_python_version()}/site-packages/image.pth
      for script in $(grep -lIm1 -d skip '^#!.*/bin/python' {ENVIRONMENT}/bin/*); do
        sed "1s|.*|#!$HOME/{folder}/bin/python|" $script | install -m 755 /dev/stdin {folder}/bin/${{script##*/}}
      done
      rm {folder}/bin/pairpbt
    """
