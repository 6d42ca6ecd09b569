"""tinker-cookbook's merge, as its docs call it. Usage: peer_tinker.py BASE ADAPTER OUTPUT"""

import sys

from tinker_cookbook import weights

base, adapter, output = sys.argv[1:]
weights.build_hf_model(base_model=base, adapter_path=adapter, output_path=output)
