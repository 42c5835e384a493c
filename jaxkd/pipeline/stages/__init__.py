"""What each kind of stage does: one file a kind, or one for all that train.

Every file has `run(stage, job) -> Made`, and `rehearse(stage, job) -> Held`, which does
as much of it as can be done with shapes alone, so that what cannot work is refused
before anything is trained.
"""
