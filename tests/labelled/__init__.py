"""Labelled runs: what each is, which findings it must have, and the programs that made it.

``labels.toml`` says what a run shows; ``tests/data/runs/NAME.tar.xz`` is the recording; ``make_host.py`` made those of real
work on a real machine, ``make_gpu.py`` those of scripted GPUs, both through the real sampler and writer:

    PYTHONPATH=tests python -m labelled.make_host [NAME…]   # root and cgroup v1 here; ten minutes for all of them
    PYTHONPATH=tests python -m labelled.make_gpu [NAME…]    # root, to mount a small disk; seconds: its clock is steered
"""
