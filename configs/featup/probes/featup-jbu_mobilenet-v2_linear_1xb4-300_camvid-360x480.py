_base_ = '../_base_/probe_camvid.py'
