_base_ = '../_base_/depth-probe_motorcycle.py'
