"""What ties the indices of a traced program's arrays together.

    labels: one number per index of every axis, and the ledger of what is tied to what
    rules, sums: what each primitive does to labels
    interpreter: the walk over a program that applies them
    components: the labels that can only be dropped together
    lengths: sizes and multiply-accumulates as functions of how many units remain

In `x @ a @ b`, with a `[3, 8]` and b `[8, 2]`, the columns of a have labels 3 to 10 and
the rows of b labels 11 to 18. The second product sums over both axes, so that it ties 3
to 11, 4 to 12 and so on: eight components, each of one column of a and one row of b.
The rows of a meet the input, and the columns of b are the result: they stay.
"""
