"""Write the report of a run, or of several side by side, with traces of its samples: see sample/viewer/report.py.

python sample/get_report.py runs/my_run
python sample/get_report.py runs/my_run runs/other_run -o comparison.html
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from runtime.pipes import quiet_pipes
    from sample.viewer.report import main

    quiet_pipes()
    sys.exit(main())
