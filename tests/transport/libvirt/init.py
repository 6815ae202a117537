"""Process 1 of a hypervisor host of the tests: starts one program and reaps whatever is orphaned.

Without it libvirt waits for ever for QEMUs that it has ended: as process 1 itself it would have to reap them.
"""

import os
import subprocess
import sys
import time

subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.05)
