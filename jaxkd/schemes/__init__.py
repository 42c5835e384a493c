"""Who teaches whom: procedures over networks, teachers, specs and distillers.

A scheme is one file. Each is imported by name, `from jaxkd.schemes import mutual`:

* `ensemble`: several teachers as one.
* `mutual`: peers that learn together and from each other.
* `self_teacher`: the moving average of the student teaches the student.
* `chain`: networks trained one after another, each taught by the one before;
  `born_again` (equal networks) and `assistants` (from large to small) are such chains.
* `teacher_free`: what a teacher's soft labels do without a teacher.
* `staged`: the objective changes as the training goes on.
* `offline`: the teacher's answers are written down once, then learnt from.
"""
