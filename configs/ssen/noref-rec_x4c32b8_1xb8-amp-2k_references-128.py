# The same without references, trained alike.
_base_ = './ssen-rec_x4c32b8_1xb8-amp-2k_references-128.py'

model = dict(generator=dict(reference=False, search=None))
# Of each set the row without a reference: the others would be the same.
rows = [
    k
    for k, loader in enumerate(_base_.test_dataloader)
    if loader.dataset.get('reference') == 'self'
]
test_dataloader = [_base_.test_dataloader[k] for k in rows]
test_evaluator = [_base_.test_evaluator[k] for k in rows]
