"""Write one HTML page that plays how each response of a JSONL file was unmasked: see sample/viewer/page.py.

python sample/get_trace_viewer.py runs/my_run -o trace.html
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from runtime.pipes import quiet_pipes
    from sample.viewer.page import main

    quiet_pipes()
    sys.exit(main())
